"""The slices of all coarse candidates of a search everywhere, in as many tiles as memory asks for."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from verglas.refine.candidates import Candidates
from verglas.refine.score import DenseSlices
from verglas.volume.slices import Pixels

_BYTES_A_PIXEL = 20  # of a slice while it is made ready: the pair sampled and squared, and its power


class CoarseSlices:
    """Kept where a tile of at most so many bytes holds them all; otherwise sampled again, tile by tile, for each batch of images."""

    def __init__(self, candidates: Candidates, pixels: Pixels, half_precision: bool, at_most: int) -> None:
        self._candidates, self._pixels, self._half_precision = candidates, pixels, half_precision
        self._of_tile = max(1, at_most // (_BYTES_A_PIXEL * len(pixels)))
        self._kept = self._tile(0) if len(self) <= self._of_tile else None

    def __len__(self) -> int:
        return len(self._candidates)

    @property
    def bytes_to_come(self) -> int:
        """What the tiles of a batch will take, beside what is kept."""
        return 0 if self._kept is not None else self._of_tile * _BYTES_A_PIXEL * len(self._pixels)

    def products(self, moved: torch.Tensor, ctf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`DenseSlices.products` [b, t, r] and `DenseSlices.energies` [b, r] of all slices."""
        if self._kept is not None:
            return self._kept.products(moved), self._kept.energies(ctf)
        products, energies = moved.new_empty(*moved.shape[:2], len(self)), ctf.new_empty(len(ctf), len(self))
        for tile, those in self._tiles():
            products[..., those], energies[:, those] = tile.products(moved), tile.energies(ctf)
        return products, energies

    def correlations(self, moved: torch.Tensor, ctf: torch.Tensor) -> torch.Tensor:
        """`DenseSlices.correlations` [b, t, r] with all slices."""
        if self._kept is not None:
            return self._kept.correlations(moved, ctf)
        found = moved.new_empty(*moved.shape[:2], len(self))
        for tile, those in self._tiles():
            found[..., those] = tile.correlations(moved, ctf)
        return found

    def _tiles(self) -> Iterator[tuple[DenseSlices, slice]]:
        for first in range(0, len(self), self._of_tile):
            tile = self._tile(first)
            yield tile, slice(first, first + len(tile))

    def _tile(self, first: int) -> DenseSlices:
        candidates = torch.arange(first, min(first + self._of_tile, len(self)), device=self._pixels.kx.device)
        return DenseSlices(self._candidates.coarse(candidates, self._pixels), self._half_precision)
