"""Movies of a known specimen, from physics, with the truth beside them."""
