"""The model of one half of the data: references, noise, priors; and what an iteration says about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verglas.volume.slices import FourierSums


@dataclass
class Model:
    """References and the statistics around them.

    references float32 [classes, N, N(, N)]; sigma2 float64 [noise groups, shells]: variance of a real component of the images'
    transforms (torch's, not divided by the number of pixels); tau2 float64 [classes, shells]: the same of the references';
    ssnr float64 [classes, shells]; class_weight float64 [classes]; offset_sigma: Å an axis.
    """

    references: torch.Tensor
    sigma2: torch.Tensor
    tau2: torch.Tensor
    ssnr: torch.Tensor
    class_weight: torch.Tensor
    offset_sigma: float

    @property
    def classes(self) -> int:
        """Number of references."""
        return len(self.references)

    @property
    def dims(self) -> int:
        """2 for class averages, 3 for maps."""
        return self.references.dim() - 1

    @property
    def box(self) -> int:
        """Pixels along an edge."""
        return self.references.shape[-1]


class Sums:
    """What the maximisation needs, added up over particles."""

    def __init__(self, model: Model, max_shell: int, padding: int, scale_groups: int) -> None:
        device = model.references.device
        self.slices = FourierSums(model.box, model.dims, max_shell, padding, maps=model.classes, device=device)
        self.residual = torch.zeros_like(model.sigma2)
        self.images = torch.zeros_like(model.sigma2[:, 0])
        self.class_weight = torch.zeros_like(model.class_weight)
        self.offset2 = torch.zeros((), dtype=torch.float64, device=device)
        self.cross = torch.zeros(scale_groups, dtype=torch.float64, device=device)
        self.energy = torch.zeros_like(self.cross)

    def tensors(self) -> list[torch.Tensor]:
        """Every accumulator."""
        return [self.residual, self.images, self.class_weight, self.offset2, self.cross, self.energy, self.slices.data]
