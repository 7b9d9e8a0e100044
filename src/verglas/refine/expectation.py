"""One pass over particles: coarse comparison, fine comparison of what is left, sums.

Every image is compared with all coarse candidates (or, in local searches, with those near its pose) up to the coarse shell; the
candidates that hold 0.999 of its weight are divided into their children and compared up to the current shell; the children that
hold 0.999 of the weight enter the sums. METHOD.md §1, §3. Fits (`Search.fit`) go on from the best of them, or from the last poses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import torch

from verglas.compute.device import fast_products
from verglas.compute.memory import batch_size, budget, total_bytes
from verglas.refine.accumulate import Entries, accumulate
from verglas.refine.assignments import Assignments
from verglas.refine.candidates import Candidates
from verglas.refine.coarse_slices import CoarseSlices
from verglas.refine.continuous import fit_and_add, last_poses
from verglas.refine.grids import SpaceGrid
from verglas.refine.kernels import comparison_kernels
from verglas.refine.model import Model, Sums
from verglas.refine.observations import Batch, Observations, shift_factors
from verglas.refine.posterior import Normaliser, PoseTerms, weigh, weigh_poses, winner, within_class
from verglas.refine.ragged import Lists, chunks, lists_of, padded, parts_within
from verglas.refine.score import own_scores, shifted
from verglas.refine.search import Found, Pass, Search
from verglas.volume.neighbours import local_neighbours
from verglas.volume.slices import Pixels

_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 27}  # reals held at once: a share of a core's cache; of a card's memory
_UNLIKE = 16.0  # scores of a chunk are as many for each image: beyond this most would stand for nothing
_FEW_ON_CARD, _MOST_ON_CARD = 2048, 16384  # images: beyond, the small steps are little beside the rest
_MOST_LISTED = 4096  # images of a local search, whose lists of neighbours are as long as they are
_TABLES_OF_SUMS = 4  # what the sums take, in tables of slices, and the table itself
_MOST_ON_CPU = 2 << 30  # bytes of a batch: cores are as busy, and a laptop has room for the maps
_READ_SHARE = 0.5  # of the host's memory, for images on their way to a card
_TABLE_SHARE = 0.15  # of the memory, for one table of slices
_CUTOFF_SIGMAS = 3.0


def expect(
    seen: Observations, rows: torch.Tensor, assignments: Assignments, model: Model, search: Search, only_class: torch.Tensor | None = None
) -> tuple[Sums, Found]:
    """Compare the particles `rows` int64 [n] with the references of `model`: the sums over them, and what was found for each.

    only_class: the one class that each particle of all may belong to, −1 for any, int64; None leaves all free.
    """
    candidates = Candidates(model.references, search.grid, search.max_shell, search.padding)
    all_of = Pass(seen, assignments, model, search, candidates)
    sums = Sums(model, search.max_shell, search.padding, len(assignments.scale))
    dense = _coarse_slices(candidates, search) if search.everywhere else None
    found = []
    for part, read in seen.reading_ahead(rows.split(_images_at_once(all_of, dense, len(rows)))):
        batch = seen.batch(part, assignments, model.sigma2, search.full, exact_origins=search.given, read=read)
        with fast_products(seen.device):
            if search.fit == "last":
                found.append(fit_and_add(all_of, batch, last_poses(all_of, batch), sums))
                continue
            coarse, prior = (
                _coarse_everywhere(all_of, batch, dense, only_class) if dense is not None else _coarse_near(all_of, batch, only_class)
            )
            entries, normaliser = _fine(all_of, batch, coarse, prior)
            if search.fit == "found":
                matrices, _, shifts = _best(all_of, batch, entries)
                found.append(fit_and_add(all_of, batch, (matrices, shifts), sums))
            else:
                found.append(_add(all_of, batch, coarse, entries, normaliser, sums))
    sums.slices.settle()
    return sums, Found(*(torch.cat([getattr(each, field.name) for each in found]) for field in fields(Found)))


def _coarse_slices(candidates: Candidates, search: Search) -> CoarseSlices:
    half_precision = search.half_precision and not search.correlation
    return CoarseSlices(candidates, search.coarse, half_precision, budget(search.coarse.kx.device, _TABLE_SHARE))


def _images_at_once(all_of: Pass, dense: CoarseSlices | None, images: int) -> int:
    """How many of so many images make a batch, from the memory there is. A few hundred keep a CPU's products busy; a card waits for many
    small steps, which take as long for few images as for many, but it also waits for the first batch to be read.
    """
    search, device = all_of.search, all_of.seen.device
    pixels, full = all_of.seen.box**2, len(search.full)
    reals = len(search.shifts.coarse) * (len(dense) + 4 * len(search.coarse)) if dense is not None else 0
    to_come = dense.bytes_to_come if dense is not None else 0
    if device.type == "cuda":
        # a pose that stays likely is listed, weighed and sorted in ten times its 4 bytes: most are, before anything is told apart
        table = all_of.candidates.projector.table
        reserved = (1 << 31) + _TABLES_OF_SUMS * table.numel() * table.element_size()
        most = _MOST_ON_CARD if dense is not None or search.fit == "last" else _MOST_LISTED
        at_most = min(most, max(_FEW_ON_CARD, images // 4))
        # read into memory that copies start from, two batches at once, each rounded up to a power of two
        at_most = max(1, min(at_most, int(_READ_SHARE * total_bytes(torch.device("cpu"))) // (16 * pixels)))
        return batch_size(8 * pixels + 48 * full + 40 * reals, device, at_most=at_most, reserved=reserved + to_come)
    size = 8 * pixels + 48 * full + 12 * reals
    return batch_size(size, device, at_most=min(512, max(1, _MOST_ON_CPU // size)), reserved=(1 << 28) + to_come)


def _coarse_everywhere(all_of: Pass, batch: Batch, dense: CoarseSlices, only_class: torch.Tensor | None) -> tuple[Entries, torch.Tensor]:
    """Coarse candidates and shifts that matter to each image, and the log prior [m] of each one's class."""
    search, k = all_of.search, len(all_of.search.coarse)
    ctf = batch.ctf[:, :k]
    moved = shifted(batch.masked[:, :k], ctf, shift_factors(search.coarse, search.shifts.coarse))
    every = torch.arange(len(dense), device=ctf.device)
    classes = all_of.candidates.class_of(every)
    prior = all_of.log_class()[classes]
    bound = None if only_class is None else only_class[batch.rows]
    if search.correlation:
        kept, _ = winner(within_class(dense.correlations(moved, ctf), classes, bound).flatten(1))
    else:
        log_shift = all_of.log_shift(batch, search.shifts.coarse)
        terms = PoseTerms(*dense.products(moved, ctf), log_shift, prior, classes, bound)
        kept = weigh_poses(terms, search.fraction, search.at_most)
    row = kept.place % len(dense)
    return Entries(kept.image, row, kept.place // len(dense), kept.weight), prior[row]


def _coarse_near(all_of: Pass, batch: Batch, only_class: torch.Tensor | None) -> tuple[Entries, torch.Tensor]:
    """As `_coarse_everywhere`, among the candidates near each image's pose; the prior is that of orientation and class."""
    search, near = all_of.search, _near(all_of, batch, only_class)
    shifts = len(search.shifts.coarse)
    every = lists_of(*_all_pairs(len(batch), shifts, near.values.device), len(batch))
    log_shift = all_of.log_shift(batch, search.shifts.coarse)
    factors = shift_factors(search.coarse, search.shifts.coarse)
    entries, _ = _compare(all_of, batch, near, every, factors, log_shift, search.coarse, fan=1)
    span = int(near.values.max()) + 1
    owner = torch.repeat_interleave(torch.arange(len(batch), device=near.values.device), near.counts)
    return entries, near.extra[torch.searchsorted(owner * span + near.values, entries.image * span + entries.row)]


def _near(all_of: Pass, batch: Batch, only_class: torch.Tensor | None) -> Lists:
    """Coarse candidates near each image's pose, in every class, with their log prior."""
    search, log_class = all_of.search, all_of.log_class()
    if search.given:
        image, pose = torch.arange(len(batch), device=log_class.device), batch.rows
        prior = torch.zeros(len(batch), device=log_class.device)
    else:
        assert isinstance(search.grid, SpaceGrid) and search.local_sigma is not None
        poses, reach = all_of.assignments.matrices[batch.rows], _CUTOFF_SIGMAS * search.local_sigma
        grid = search.grid.on(log_class.device)
        image, pose, prior = local_neighbours(grid, poses, reach, search.local_sigma, search.grid.perturbation)
    classes = torch.arange(len(log_class), device=log_class.device)[:, None]
    candidate = pose + classes * len(search.grid)
    owner, log_prior = image.expand_as(candidate), prior + log_class[:, None]
    if only_class is not None:
        bound = only_class[batch.rows][image]
        allowed = (bound < 0) | (bound == classes)
        owner, candidate, log_prior = owner[allowed], candidate[allowed], log_prior[allowed]
    return lists_of(owner.flatten(), candidate.flatten(), len(batch), log_prior.flatten())


def _fine(all_of: Pass, batch: Batch, coarse: Entries, prior: torch.Tensor) -> tuple[Entries, Normaliser]:
    """Compare each image with the children of its coarse candidates and shifts."""
    search = all_of.search
    fan = search.shifts.fan
    rows = lists_of(coarse.image, coarse.row, len(batch), prior)
    children = coarse.shift[:, None] * fan + torch.arange(fan, device=coarse.shift.device)
    shifts = lists_of(coarse.image.repeat_interleave(fan), children.flatten(), len(batch))
    log_shift = all_of.log_shift(batch, search.shifts.fine)
    factors = shift_factors(search.score, search.shifts.fine)
    return _compare(all_of, batch, rows, shifts, factors, log_shift, search.score, fan=search.grid.fan)


def _add(all_of: Pass, batch: Batch, coarse: Entries, entries: Entries, normaliser: Normaliser, sums: Sums) -> Found:
    """Add up what holds the weight, and read off each image's best pose."""
    residual = accumulate(all_of, sums, batch, entries)
    matrices, classes, shifts = _best(all_of, batch, entries)
    whole = all_of.assignments.whole_shifts(batch.rows, all_of.seen.pixel_size)
    origins = (whole + shifts) * all_of.seen.pixel_size
    return Found(
        matrices,
        all_of.assignments.origins[batch.rows] if all_of.search.given else origins,
        classes,
        normaliser.largest + normaliser.log_sum,
        entries.weight[_first_of_images(batch, entries)],
        torch.bincount(coarse.image, minlength=len(batch)),
        residual,
    )


def _best(all_of: Pass, batch: Batch, entries: Entries) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The most likely pose [b, 3, 3], class [b] and shift [b, 2] (pixels) of each image."""
    best = _first_of_images(batch, entries)
    return *all_of.candidates.fine_poses(entries.row[best]), all_of.search.shifts.fine[entries.shift[best]]


def _first_of_images(batch: Batch, entries: Entries) -> torch.Tensor:
    return torch.searchsorted(entries.image, torch.arange(len(batch), device=entries.image.device))


def _compare(
    all_of: Pass, batch: Batch, rows: Lists, shifts: Lists, factors: torch.Tensor, log_shift: torch.Tensor, pixels: Pixels, *, fan: int
) -> tuple[Entries, Normaliser]:
    """Compare each image with coarse candidates of its own (with fan > 1: their children) at shifts of its own.

    Returns the kept (image, candidate, shift), sorted by image and falling weight.
    """
    device = factors.device
    children = _children(rows, fan)
    kept: list[Entries] = []
    largest, log_sum = torch.zeros(len(batch), device=device), torch.zeros(len(batch), device=device)
    for images, scores in _own_scores(all_of, batch, children, shifts, factors, pixels, fan):
        entries, normaliser = _weigh(all_of.search, images, scores, children, shifts, log_shift)
        largest[images], log_sum[images] = normaliser
        kept.append(entries)
    joined = [torch.cat(values) for values in zip(*kept)]
    order = torch.argsort(joined[0], stable=True)
    return Entries(*(values[order] for values in joined)), Normaliser(largest, log_sum)


def _children(rows: Lists, fan: int) -> Lists:
    """The children of each image's coarse candidates, with their parents' priors."""
    if fan == 1:
        return rows
    values = (rows.values[:, None] * fan + torch.arange(fan, device=rows.values.device)).flatten()
    return Lists(values, rows.extra.repeat_interleave(fan), rows.starts * fan, rows.counts * fan)


def _own_scores(
    all_of: Pass, batch: Batch, rows: Lists, shifts: Lists, factors: torch.Tensor, pixels: Pixels, fan: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images [o] of the batch and their scores [o, slices, shifts], a chunk at a time; −inf past the end of an image's lists.

    The slices of all `fan` children of a candidate stand together in `rows`.
    """
    candidates, search = all_of.candidates, all_of.search
    k, kernels = len(pixels), comparison_kernels(candidates.projector)
    # on a card many images share the slices of a search everywhere: a table of them is then cheaper than sampling for each image
    if kernels is not None and not (search.everywhere and factors.is_cuda):
        matrices, classes = candidates.families(rows.values[::fan] // fan, fan)
        local = rows._replace(values=torch.arange(len(rows.values), device=factors.device))
        for images in chunks((rows.counts, shifts.counts), _CHUNK[factors.device.type], _UNLIKE):
            operands = (candidates.projector, pixels, batch.masked, batch.ctf, factors)
            yield images, kernels.score_own(*operands, images, local, matrices, classes, shifts, correlation=search.correlation)
        return
    cap = max(fan, budget(factors.device, _TABLE_SHARE) // (8 * k))
    parts = [(0, len(batch))] if len(candidates) * fan <= cap else parts_within(rows.counts, cap)
    for first, last in parts:
        begin, end = int(rows.starts[first]), int(rows.starts[last - 1] + rows.counts[last - 1])
        used, parent = torch.unique(rows.values[begin:end:fan] // fan, return_inverse=True)
        table = candidates.slices(used, fan, pixels)
        place = (parent[:, None] * fan + torch.arange(fan, device=parent.device)).flatten()
        own = Lists(place, rows.extra[begin:end], rows.starts - begin, rows.counts)
        if kernels is not None:
            counts = (rows.counts[first:last], shifts.counts[first:last])
            for owners in chunks(counts, _CHUNK[factors.device.type], _UNLIKE):
                seen = (batch.masked, batch.ctf, factors, owners + first)
                yield owners + first, kernels.score_listed(table, pixels, *seen, own, shifts, correlation=search.correlation)
            continue
        sizes = 2 * k * (rows.counts + 2 * shifts.counts)[first:last]
        for owners in chunks([sizes], _CHUNK[factors.device.type]):
            yield owners + first, _scores_of(batch, owners + first, table, own, shifts, factors, search.correlation)


def _scores_of(
    batch: Batch, images: torch.Tensor, table: torch.Tensor, rows: Lists, shifts: Lists, factors: torch.Tensor, correlation: bool
) -> torch.Tensor:
    """Scores [o, r, t] of images against rows of the table of slices [m, 2k] and shifts of their own."""
    (row, real), (column, there) = padded(rows, images), padded(shifts, images)
    ctf = batch.ctf[images, : factors.shape[-1]]
    moved = shifted(batch.masked[images, : factors.shape[-1]], ctf, factors[shifts.values[column]])
    scores = own_scores(moved, ctf, table[rows.values[row]], correlation=correlation)
    return scores.masked_fill_(~(real[:, :, None] & there[:, None, :]), -torch.inf)


def _weigh(
    search: Search, images: torch.Tensor, scores: torch.Tensor, rows: Lists, shifts: Lists, log_shift: torch.Tensor
) -> tuple[Entries, Normaliser]:
    """The candidates that hold the weight, after the priors were added to `scores` (in place), and the normaliser."""
    row_place, shift_place = padded(rows, images)[0], padded(shifts, images)[0]
    shift = shifts.values[shift_place]
    if not search.correlation:
        scores += rows.extra[row_place][:, :, None]
        scores += log_shift[images[:, None], shift][:, None, :]
    flat = scores.flatten(1)
    kept, normaliser = winner(flat) if search.correlation else weigh(flat, search.fraction, search.at_most)
    row, column = kept.place // shift.shape[1], kept.place % shift.shape[1]
    return Entries(images[kept.image], rows.values[row_place[kept.image, row]], shift[kept.image, column], kept.weight), normaliser


def _all_pairs(owners: int, values: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(owners, device=device).repeat_interleave(values), torch.arange(values, device=device).repeat(owners)
