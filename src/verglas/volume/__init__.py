"""Rotations, symmetry, Fourier slices and their adjoint, reconstruction, FSC, masks, alignment of maps."""
