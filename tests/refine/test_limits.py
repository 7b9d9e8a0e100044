"""How far images are compared: some way past the resolution, and further as the maps get better."""

from types import ModuleType

import pytest
import torch

from refine.sets import DIAMETER, particles, seen, unknown
from verglas.refine import autorefine, classify
from verglas.refine.assignments import from_particles, split_halves
from verglas.refine.iteration import build_search
from verglas.refine.search import Search
from verglas.refine.settings import Settings
from verglas.refine.start import first_state
from verglas.refine.state import Progress, Sampling, State

BOX, PIXEL = 48, 4.0  # 192 Å; the last shell is 23


@pytest.mark.parametrize(
    "shell,fsc_at_limit,max_probability,last,limit,expected",
    [
        (4, 0.1, 0.5, False, 100, 14),
        (20, 0.1, 0.5, False, 100, 30),
        (4, 0.3, 0.5, False, 100, 39),
        (20, 0.3, 0.5, False, 100, 55),
        (20, 0.3, 0.5, False, 40, 40),
        (20, 0.3, 0.05, False, 100, 30),  # the halves agree, but no pose stands out yet
        (1, 0.1, 0.5, True, 100, 2),
        (4, 0.1, 0.5, True, 100, 5),
        (20, 0.1, 0.5, True, 100, 25),
        (20, 0.3, 0.5, True, 100, 25),
        (20, 0.3, 0.5, True, 22, 22),
    ],
)
def test_the_limit_of_a_refinement(shell: int, fsc_at_limit: float, max_probability: float, last: bool, limit: int, expected: int) -> None:
    """Ten shells past the resolution, a quarter of Nyquist more where halves agree and poses are sharp; at the end 1.25 times it."""
    own = unknown(particles(60, BOX, PIXEL, 0.1)[1])
    own.max_probability[:] = max_probability
    state = State(3, own, [], Sampling(2, 12.0, 5.0, 2.0), Progress(shell, fsc_at_limit=fsc_at_limit), torch.zeros(1), [])
    assert autorefine._score_shell(state, limit, last) == expected


def noted_searches(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Search]:
    """What the module's iterations compare from now on, one an iteration."""
    searches: list[Search] = []

    def noted(*operands, **named) -> Search:  # type: ignore[no-untyped-def]
        searches.append(build_search(*operands, **named))
        return searches[-1]

    monkeypatch.setattr(module, "build_search", noted)
    return searches


def test_a_refinement_compares_further_as_its_halves_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """From shell 4 on each iteration goes by the FSC of the one before, and the last sums up to Nyquist whatever it compares."""
    images, table, truth = particles(60, BOX, PIXEL, 0.1)
    view, own = seen(images, table), split_halves(table, 1)[0]
    begin = {"healpix_order": 3, "local_order": 3, "offset_range_px": 1.0, "offset_step_px": 1.0}
    settings = Settings(dims=3, mask_diameter=DIAMETER, symmetry="D2", ini_high=48.0, iterations=2, **begin)  # type: ignore[arg-type]
    searches = noted_searches(monkeypatch, autorefine)
    start = first_state(view, from_particles(table, len(view.micrographs), own), truth[None], settings)
    states = list(autorefine.refine(view, start, settings))
    compared, summed = ([int(part.shell.max()) for part in parts] for parts in zip(*((each.score, each.full) for each in searches)))
    reached = [state.progress.resolution_shell for state in states]
    assert compared == [14, min(23, reached[0] + 10), min(23, -(-5 * reached[1] // 4))]
    assert compared[0] < compared[1] < 23 and reached[0] < reached[1]
    assert summed == [14, compared[1], 23]
    assert [row["compared_to"] for row in states[-1].history] == [192 / shell for shell in compared]
    # what the next limit is to go by is the FSC at this one
    assert [state.progress.fsc_at_limit for state in states] == [float(state.fsc[shell]) for state, shell in zip(states, compared)]


@pytest.mark.parametrize("ini_high,limit_resolution,first", [(48.0, None, 14), (48.0, 192 / 12, 12), (9.6, None, 23), (9.6, 192 / 17, 17)])
def test_a_classification_compares_further_as_its_maps_get_better(
    monkeypatch: pytest.MonkeyPatch, ini_high: float, limit_resolution: float | None, first: int
) -> None:
    """Ten shells past shell 4 and past shell 20, but for Nyquist and the limit asked for; then ten past what its maps have reached."""
    images, table, truth = particles(60, BOX, PIXEL, 0.1)
    view = seen(images, table)
    settings = Settings(
        dims=3,
        mask_diameter=DIAMETER,
        symmetry="D2",
        ini_high=ini_high,
        limit_resolution=limit_resolution,
        tau2_fudge=0.3,  # else its first map reaches shell 13, and everything is compared
        iterations=2,
        align=False,
    )
    searches = noted_searches(monkeypatch, classify)
    start = first_state(view, from_particles(table, len(view.micrographs)), truth[None], settings)
    states = list(classify.classify(view, start, settings))
    most = settings.shell_limit(BOX, PIXEL)
    compared = [int(search.score.shell.max()) for search in searches]
    assert compared == [first, min(most, states[0].progress.resolution_shell + 10)]
    assert compared[0] == most or compared[0] < compared[1] < 23
    assert [row["compared_to"] for row in states[-1].history] == [192 / shell for shell in compared]
