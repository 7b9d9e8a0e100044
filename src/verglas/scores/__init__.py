"""Scores against truth: motion, CTF, picks, classes, poses, maps. Arrays in, numbers out."""
