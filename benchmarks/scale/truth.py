"""True structures of a set: the stand-in or its asymmetric relative, in one state or several."""

from __future__ import annotations

import torch

from verglas.simulate.potential import potential_map
from verglas.simulate.stand_in import stand_in
from verglas.simulate.variants import with_domain_turned, without_symmetry

TURNS = (0.0, 25.0, -25.0, 50.0)  # degrees by which a domain of each chain is turned in each state
SYMMETRIES = ("D2", "C1")


def true_maps(states: int, symmetry: str, box: int, pixel_size: float) -> torch.Tensor:
    """Maps of the first `states` states, float32 [states, box, box, box] (V), with the symmetry D2 or C1."""
    specimens = [with_domain_turned(stand_in(), turn) if turn else stand_in() for turn in TURNS[:states]]
    if symmetry == "C1":
        specimens = [without_symmetry(specimen) for specimen in specimens]
    return torch.stack([potential_map(specimen, box, pixel_size) for specimen in specimens])
