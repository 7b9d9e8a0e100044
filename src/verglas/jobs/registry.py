"""The job types by name, loaded only when asked for."""

from __future__ import annotations

from importlib import import_module

from verglas.errors import InputError
from verglas.jobs.declaration import JobType

MODULES = {
    "Import": "import_data",
    "MotionCorr": "motioncorr",
    "CtfFind": "ctffind",
    "AutoPick": "autopick",
    "Extract": "extract",
    "Class2D": "class2d",
    "Select": "select",
    "JoinStar": "joinstar",
    "InitialModel": "initialmodel",
    "Class3D": "class3d",
    "Refine3D": "refine3d",
    "MaskCreate": "maskcreate",
    "PostProcess": "postprocess",
}


def job_type(name: str) -> JobType:
    """The declaration of job type `name`. Raises InputError with the known names for another one."""
    if name not in MODULES:
        meant = next((known for known in MODULES if known.lower() == name.lower()), None)
        raise InputError(name, "not a job type", f"Did you mean {meant}?" if meant else f"Known: {', '.join(MODULES)}")
    declared: JobType = import_module(f"verglas.jobs.{MODULES[name]}").JOB
    return declared
