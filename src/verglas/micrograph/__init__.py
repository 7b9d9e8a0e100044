"""From movies to particles, on arrays: motion, CTF estimation, picking, extraction."""
