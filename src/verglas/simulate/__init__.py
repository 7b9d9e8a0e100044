"""Atoms to specimen to movies, with the truth beside them."""
