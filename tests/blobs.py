"""A small map that tests of several rooms use."""

import torch


def blobs(box: int, seed: int = 0, count: int = 12, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A map of Gaussian blobs within a third of the box."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, 3, generator=generator, dtype=dtype) * box / 9
    line = torch.arange(box, dtype=dtype) - box // 2
    spread = [torch.exp(-((line - centres[:, axis, None]) ** 2) / 4.5) for axis in (2, 1, 0)]
    return torch.einsum("nz,ny,nx->zyx", *spread)
