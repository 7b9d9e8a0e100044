"""Particles, optics groups and micrographs as tables, and the images that belong to them."""

from verglas.particles.ctf_parameters import beam_tilt, ctf_parameters, magnification
from verglas.particles.files import read_micrographs, read_particles, write_micrographs, write_particles
from verglas.particles.images import ArrayImages, ImageSource, KeptImages, StackImages, reading_order
from verglas.particles.tables import Micrographs, OpticsGroups, ParticleSet, join

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
