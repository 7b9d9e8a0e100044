"""The second engine: a declared job carried out by the RELION on the PATH, in the same folder, for the same judge."""
