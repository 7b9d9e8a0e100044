"""Particles, optics groups and micrographs as tables, and the images that belong to them.

What needs torch is imported when it is asked for: a table is read in a tenth of the time that torch takes to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from verglas.particles.files import read_micrographs, read_particles, write_micrographs, write_particles
from verglas.particles.tables import Micrographs, OpticsGroups, ParticleSet, join

if TYPE_CHECKING:
    from verglas.particles.ctf_columns import beam_tilt, ctf_parameters, magnification
    from verglas.particles.images import ArrayImages, ImageSource, KeptImages, StackImages, reading_order

__all__ = [
    "ArrayImages",
    "ImageSource",
    "KeptImages",
    "Micrographs",
    "OpticsGroups",
    "ParticleSet",
    "StackImages",
    "beam_tilt",
    "ctf_parameters",
    "join",
    "magnification",
    "read_micrographs",
    "read_particles",
    "reading_order",
    "write_micrographs",
    "write_particles",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in __all__:
            for part in ("ctf_columns", "images"):
                module = import_module(f"{__name__}.{part}")
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
