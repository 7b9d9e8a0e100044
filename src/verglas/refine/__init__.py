"""The likelihood engine: 2D and 3D classification, refinement and ab initio are settings of it."""
