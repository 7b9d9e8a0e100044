"""Scores of motion, CTF, picks and classes: known errors give known figures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verglas.scores.classes import class_purity, orientation_spread
from verglas.scores.ctf import ctf_errors
from verglas.scores.motion import local_model_shift, mean_score, motion_rms
from verglas.scores.picks import match_picks, total_score


def test_motion_ignores_a_constant_shift_and_sees_an_error() -> None:
    true = np.cumsum(np.random.default_rng(0).normal(size=(20, 5, 2)), axis=0)
    assert motion_rms(true + np.array([3.0, -7.0]), true).rms == pytest.approx(0, abs=1e-12)
    wrong = true.copy()
    wrong[::2, :, 0] += 1.0  # ±0.5 after the mean is removed
    score = motion_rms(wrong, true)
    assert score.rms == pytest.approx(0.5)
    assert score.uncorrected == pytest.approx(motion_rms(np.zeros_like(true), true).rms)
    assert motion_rms(-true, true).share == pytest.approx(2.0)
    assert mean_score([score, score]).rms == pytest.approx(0.5)
    with pytest.raises(ValueError, match="one shape"):
        motion_rms(true[:-1], true)


def test_local_model_has_relions_order() -> None:
    """Time powers inside spatial terms, x before y (RELION.md §7)."""
    coefficients = np.zeros(36)
    coefficients[3 * 5 + 1] = 2.0  # x-shift, term xy, time²
    coefficients[18 + 3 * 2] = 1.0  # y-shift, term x², time
    shift = local_model_shift(coefficients, np.array([0.5, -0.5]), np.array([0.25, 0.5]), 4)
    assert shift[3, :, 0] == pytest.approx([2 * 0.5 * 0.25 * 9, -2 * 0.5 * 0.5 * 9])
    assert shift[3, :, 1] == pytest.approx([0.75, 0.75])
    assert not shift[0].any()


def test_ctf_errors_take_the_angle_modulo_180_and_u_v_swapped() -> None:
    true = np.array([[10200.0, 10000.0, 2.0], [15000.0, 15000.0, 0.0]])
    same = np.array([[10000.0, 10200.0, 92.0], [15000.0, 15000.0, 77.0]])
    errors = ctf_errors(same, true)
    assert errors.defocus == pytest.approx([0, 0]) and errors.astigmatism == pytest.approx([0, 0], abs=1e-9)
    assert errors.angle[0] == pytest.approx(0, abs=1e-9) and errors.astigmatism_vector == pytest.approx([0, 0], abs=1e-9)
    off = ctf_errors(np.array([[10320.0, 10080.0, 178.0], [14000.0, 14000.0, 0.0]]), true)
    assert off.defocus == pytest.approx([100, -1000]) and off.angle[0] == pytest.approx(4)
    assert off.astigmatism[0] == pytest.approx(40)
    assert off.median_defocus == pytest.approx(550) and off.worst_defocus == pytest.approx(1000)


def test_picks_are_matched_one_to_one() -> None:
    true = np.array([[100.0, 100], [300, 100], [500, 100], [5, 100]])
    found = np.array([[101.0, 100], [104, 100], [310, 100], [900, 900], [8, 100]])
    score = match_picks(found, true, distance=15, field=(1000, 1000), edge=20)
    # the double pick at 104 and the one at 900 are false; the particle at x = 5 lies on the edge
    assert (score.matched, score.picked, score.true) == (2, 4, 3)
    assert score.precision == 0.5 and score.recall == pytest.approx(2 / 3) and score.f1 == pytest.approx(4 / 7)
    assert score.centre_error == pytest.approx(np.sqrt((1 + 100) / 2))
    assert total_score([score, score]).true == 6


def test_matching_prefers_more_pairs_over_nearer_ones() -> None:
    """Nearest first would pair 0 with 1 and leave the others alone."""
    assert match_picks(np.array([[0.0, 0], [-9, 0]]), np.array([[1.0, 0], [0.0 + 9.5, 0]]), distance=10).matched == 2


def test_no_picks_and_no_particles() -> None:
    nothing = np.zeros((0, 2))
    some = np.array([[10.0, 10]])
    assert match_picks(nothing, some, 5).recall == 0 and match_picks(nothing, some, 5).f1 == 0
    assert match_picks(some, nothing, 5).precision == 0
    assert match_picks(nothing, nothing, 5).f1 == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 1000))
def test_matching_is_symmetric_and_bounded(n: int, m: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    first, second = random.uniform(0, 60, (n, 2)), random.uniform(0, 60, (m, 2))
    forth, back = match_picks(first, second, 8), match_picks(second, first, 8)
    assert forth.matched == back.matched <= min(n, m)
    assert np.all(forth.distances <= 8)
    assert forth.distances.sum() == pytest.approx(back.distances.sum())


def test_class_purity() -> None:
    found = np.array([1, 1, 1, 2, 2, 5])
    true = np.array([2, 2, 1, 1, 1, 2])
    score = class_purity(found, true)
    assert score.confusion.tolist() == [[1, 2], [2, 0], [0, 1]]
    assert score.purity == pytest.approx(5 / 6) and score.chance == 0.5
    assert score.majority == {1: 2, 2: 1, 5: 2}
    with pytest.raises(ValueError, match="same particles"):
        class_purity(found[:2], true)


def test_orientation_spread_uses_the_group() -> None:
    directions = np.array([[0.0, 0.6, 0.8], [0.0, -0.6, 0.8], [1.0, 0, 0]])
    two_fold = np.stack([np.eye(3), np.diag([-1.0, -1.0, 1.0])])
    assert orientation_spread(np.array([1, 1, 2]), directions, two_fold) == pytest.approx([0, 0, 0], abs=1e-5)
    assert orientation_spread(np.array([1, 1, 2]), directions, two_fold[:1]).max() == pytest.approx(73.74, abs=0.01)
