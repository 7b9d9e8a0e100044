"""Verglas: single-particle cryo-EM from movies to a 3D map, with a record and a verdict for every job.

The rooms of the house, from the ground up: `compute`, `io`, `optics`, `volume`, `scores` (arrays and files);
`particles`; `micrograph` and `refine` (the methods); `simulate`, `records`, `project`, `pictures`; `jobs` (one module
a job type); `workflow` (runs and judges jobs, recipes); `bench`; `cli`. A room imports only from rooms below it.
"""

from verglas.version import __version__

__all__ = ["__version__"]
