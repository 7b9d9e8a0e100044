"""The engine at any size, see `__main__`."""
