"""A whole project made by the command line, once for all tests of this folder, and how RELION's programs are run in it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = Path(__file__).with_name("small.toml")
# 22 e⁻/Å² a frame: below the 255 counts that a TIFF's 8 bits hold
SIMULATION = (
    "--movies 6 --width 512 --height 512 --pixel-size 2.8 --frames 6 --dose-per-frame 22 --no-damage --drift 10 --particles-per-movie 36 "
    "--optics-groups 2 --beam-tilt-x 0.3 --carbon 0 --contaminated 0 --aggregated 0 --ice-thickness 200 --envelope-bfactor 60"
)


def _run(command: list[str], folder: Path) -> str:
    """What the command printed; it must end with 0."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def verglas(folder: Path, *words: str) -> str:
    """Our command line in a process of its own, as a user runs it."""
    return _run([sys.executable, "-m", "verglas", *words], folder)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Movies to a sharpened map, every job type; tests read it and write elsewhere."""
    root = tmp_path_factory.mktemp("project")
    verglas(root, "simulate", "--out", "simulated", *SIMULATION.split())
    verglas(root, "new", ".")
    verglas(root, "run", str(RECIPE))
    return root


@pytest.fixture
def relion(project: Path) -> Callable[[str], str]:
    """Run a RELION program in the project; an option that it doesn't know is an error, as is an exit code other than 0."""

    def run(command: str) -> str:
        said = _run(command.split(), project)
        assert "is not a valid RELION argument" not in said, said[-2000:]
        return said

    return run
