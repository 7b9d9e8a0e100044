"""True structures of a set: the stand-in or its asymmetric relative, in one state or several."""

from __future__ import annotations

import torch

from verglas.simulate.potential import potential_map
from verglas.simulate.stand_in import stand_in
from verglas.simulate.variants import with_domain_turned, without_symmetry
from verglas.volume.fourier import fourier_pad

TURNS = (0.0, 25.0, -25.0, 50.0)  # degrees by which a domain of each chain is turned in each state
_LARGEST = 256  # voxels along an edge that atoms are laid on
SYMMETRIES = ("D2", "C1")


def true_maps(states: int, symmetry: str, box: int, pixel_size: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """Maps of the first `states` states, float32 [states, box, box, box] (V), with the symmetry D2 or C1.

    Of boxes above 256 the frequencies beyond those that 256 voxels hold are 0: nothing is lost that these particles could show.
    """
    specimens = [with_domain_turned(stand_in(), turn) if turn else stand_in() for turn in TURNS[:states]]
    if symmetry == "C1":
        specimens = [without_symmetry(specimen) for specimen in specimens]
    made = min(box, _LARGEST)
    maps = torch.stack([potential_map(specimen, made, pixel_size * box / made) for specimen in specimens]).to(device)
    return maps if made == box else torch.stack([fourier_pad(each, box, 3) for each in maps])
