"""Scores, weights and ragged lists against their definitions."""

import pytest
import torch

from verglas.compute.native import native_library, why_not_native
from verglas.refine import posterior_native
from verglas.refine.posterior import PoseTerms, keep_weight, likely, likely_poses, weigh, winner
from verglas.refine.ragged import chunks, lists_of, padded, parts_within
from verglas.refine.score import DenseSlices, own_scores, reals, shifted


def operands(images: int = 5, shifts: int = 3, slices: int = 40, k: int = 64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    common = 8 * torch.randn(1, k, dtype=torch.complex64, generator=generator)
    return (
        torch.randn(images, k, dtype=torch.complex64, generator=generator) + common,
        torch.rand(images, k, generator=generator),
        torch.polar(torch.ones(shifts, k), torch.rand(shifts, k, generator=generator) * 6),
        torch.randn(slices, k, dtype=torch.complex64, generator=generator) + common,
    )


def direct(images: torch.Tensor, ctf: torch.Tensor, factors: torch.Tensor, slices: torch.Tensor) -> torch.Tensor:
    """log p up to terms of the image alone: −½ Σ |X S − C P|² + ½ Σ |X|², in double precision [b, t, r]."""
    moved = images.to(torch.complex128)[:, None] * factors
    difference = moved[:, :, None] - (ctf[:, None] * slices).to(torch.complex128)[:, None]
    return 0.5 * moved.abs().square().sum(-1)[:, :, None] - 0.5 * difference.abs().square().sum(-1)


def scores(dense: DenseSlices, moved: torch.Tensor, ctf: torch.Tensor) -> torch.Tensor:
    return dense.products(moved) - dense.energies(ctf)[:, None]


def test_scores_are_the_log_likelihood() -> None:
    images, ctf, factors, slices = operands()
    exact = direct(images, ctf, factors, slices)
    dense = scores(DenseSlices(reals(slices), half_precision=False), shifted(images, ctf, factors), ctf)
    assert (dense - exact).abs().max() < 1e-3
    own = own_scores(shifted(images, ctf, factors), ctf, reals(slices).expand(5, -1, -1))
    assert (own.mT - exact).abs().max() < 1e-3


def test_half_precision_errs_by_the_spread_not_by_the_size() -> None:
    """Slices that share most of what they show: large scores of little spread, which bf16 alone would round by their size."""
    images, ctf, factors, slices = operands(slices=400)
    exact = direct(images, ctf, factors, slices)
    found = scores(DenseSlices(reals(slices), half_precision=True), shifted(images, ctf, factors), ctf)
    error = (found - exact).square().mean().sqrt()
    plain = (shifted(images, ctf, factors).flatten(0, 1).bfloat16() @ reals(slices).bfloat16().T).float().view(5, 3, -1)
    plain -= 0.5 * (ctf.square() @ slices.abs().square().T)[:, None]
    assert error < 0.01 * exact.std()
    assert error < 0.25 * (plain - exact).square().mean().sqrt()


def test_correlations_do_not_depend_on_the_references_scale() -> None:
    images, ctf, factors, slices = operands()
    moved = shifted(images, ctf, factors)
    one, ten = (DenseSlices(reals(scale * slices), False).correlations(moved, ctf) for scale in (1.0, 10.0))
    assert torch.allclose(one, ten, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["1", "0"], ids=["compiled", "plain"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "1" and native_library(posterior_native.SOURCE) is None:
        pytest.skip(why_not_native(posterior_native.SOURCE))
    monkeypatch.setenv("VERGLAS_NATIVE", request.param)


@pytest.mark.usefixtures("native")
def test_kept_weight_is_the_smallest_set_and_sums_to_one() -> None:
    scores = torch.randn(6, 300, generator=torch.Generator().manual_seed(2)) * 3
    scores[0, 7:] = -torch.inf
    kept, normaliser = weigh(scores, 0.99, 1000)
    weights = torch.softmax(scores.double(), dim=1)
    for image in range(6):
        mine = kept.place[kept.image == image]
        ordered = weights[image].sort(descending=True)
        count = int((ordered.values.cumsum(0) < 0.99).sum()) + 1
        assert mine.tolist() == ordered.indices[:count].tolist()
        assert abs(float(kept.weight[kept.image == image].sum()) - 1) < 1e-5
    assert torch.allclose(normaliser.largest + normaliser.log_sum, torch.logsumexp(scores, 1), atol=1e-4)
    assert weigh(torch.zeros(3, 500), 0.999, 20)[0].place.view(3, 20).tolist() == 3 * [list(range(20))]
    assert winner(scores)[0].place.tolist() == scores.argmax(1).tolist()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("slices", "bound"), [(30, False), (1024, True), (2500, False), (2500, True)])
def test_likely_poses_are_those_of_the_sum_of_all_terms(device: str, slices: int, bound: bool) -> None:
    generator = torch.Generator().manual_seed(slices)
    products, energy = 20 * torch.randn(4, 3, slices, generator=generator), 5 * torch.rand(4, slices, generator=generator)
    log_shift, log_slice = torch.randn(4, 3, generator=generator), torch.randn(slices, generator=generator)
    classes, own = torch.arange(slices) % 3, torch.tensor([-1, 0, 2, 1])
    scores = products - energy[:, None] + log_shift[:, :, None] + log_slice
    if bound:
        scores.masked_fill_(((own >= 0)[:, None] & (own[:, None] != classes))[:, None], -torch.inf)
    expected = likely(scores.flatten(1))
    given = [each.to(device) for each in (products.clone(), energy, log_shift, log_slice, classes)]
    found = likely_poses(PoseTerms(*given, own.to(device) if bound else None))
    assert torch.equal(found.image.cpu(), expected.image) and torch.equal(found.place.cpu(), expected.place)
    assert torch.allclose(found.score.cpu(), expected.score, rtol=1e-5) and torch.allclose(found.largest.cpu(), expected.largest, rtol=1e-5)
    assert 4 < len(found.place) < 4 * 3 * slices


@pytest.mark.usefixtures("native")
def test_a_score_of_thousands_does_not_overflow() -> None:
    scores = torch.tensor([[5000.0, 5001.0, 4000.0], [-9000.0, -9001.0, -torch.inf]])
    kept, normaliser = weigh(scores, 0.999, 10)
    assert torch.isfinite(kept.weight).all() and torch.isfinite(normaliser.largest).all()
    assert torch.allclose(kept.weight, torch.tensor([0.7311, 0.2689, 0.7311, 0.2689]), atol=1e-3)


@pytest.mark.skipif(native_library(posterior_native.SOURCE) is None, reason="no C++ compiler")
@pytest.mark.parametrize("threads", [1, 3, 9])
@pytest.mark.parametrize(("spread", "at_most"), [(1.0, 40), (5.0, 40), (30.0, 500)])
def test_compiled_weights_are_those_of_the_twin(spread: float, at_most: int, threads: int) -> None:
    """Flat, peaked and single; with a row that has one candidate, and equal ones. Where two lists part, it is at the end, by rounding."""
    scores = spread * torch.randn(7, 900, generator=torch.Generator().manual_seed(5))
    scores[2, 1:], scores[3, 100:] = -torch.inf, scores[3, :100].repeat(8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        (kept, normaliser), (other, expected) = weigh(scores, 0.999, at_most), keep_weight(likely(scores), 0.999, at_most)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(normaliser.largest, expected.largest) and torch.allclose(normaliser.log_sum, expected.log_sum, atol=1e-5)
    for image in range(len(scores)):
        (mine, weight), (twin, twins) = ((each.place[each.image == image], each.weight[each.image == image]) for each in (kept, other))
        same = min(len(mine), len(twin))
        assert abs(len(mine) - len(twin)) <= 1 and torch.equal(mine[:same], twin[:same])
        assert torch.allclose(weight[:same], twins[:same], rtol=2e-3)
    assert kept.place[kept.image == 2].tolist() == [0] and len(kept.place) > len(scores)


def test_lists_and_their_padding() -> None:
    lists = lists_of(torch.tensor([2, 0, 2, 0, 2]), torch.tensor([5, 9, 5, 1, 3]), 3, torch.tensor([0.5, 0.9, 0.5, 0.1, 0.3]))
    assert lists.counts.tolist() == [2, 0, 2]
    place, real = padded(lists, torch.tensor([2, 0]))
    assert lists.values[place].tolist() == [[3, 5], [1, 9]] and real.all()
    assert torch.allclose(lists.extra[place], torch.tensor([[0.3, 0.5], [0.1, 0.9]]))
    assert not padded(lists, torch.tensor([1, 0]))[1][0].any()


def test_a_chunk_of_unlike_lists_is_as_large_as_all_its_largest() -> None:
    """One image has many slices, another many shifts: together they would take the product."""
    counts = torch.tensor([4000, 160, 150]), torch.tensor([4, 84, 80])
    assert [chunk.tolist() for chunk in chunks(counts, 40_000)] == [[0], [1, 2]]
    assert [chunk.tolist() for chunk in chunks(counts, 3 * 4000 * 84)] == [[0, 1, 2]]


@pytest.mark.parametrize("budget", [1, 7, 100])
def test_chunks_hold_every_owner_once(budget: int) -> None:
    sizes = torch.tensor([3, 1, 4, 1, 5, 0, 2])
    order = torch.cat(list(chunks([sizes], budget)))
    assert sorted(order.tolist()) == list(range(7))
    alike = list(chunks([sizes], budget, unlike=2.0))
    assert torch.equal(torch.cat(alike), order)
    assert all(2 * int(sizes[chunk[-1]]) >= int(sizes[chunk[0]]) for chunk in alike)
    runs = list(parts_within(sizes, budget))
    assert [i for first, last in runs for i in range(first, last)] == list(range(7))
    assert all(int(sizes[first:last].sum()) <= budget or last - first == 1 for first, last in runs)
