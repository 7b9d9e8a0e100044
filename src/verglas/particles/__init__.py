"""Particles, optics groups and micrographs as tables, and the images that belong to them."""
