"""A few small particles with a strong signal, and stand-ins for RELION's programs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from verglas.io.mrc import write_map, write_stack
from verglas.particles import write_particles
from verglas.simulate.particles import simulate_particles

COUNT, BOX, PIXEL, DIAMETER = 80, 24, 6.5, 140.0

STAND_IN = """#!/bin/sh
if [ "$1" = --version ]; then echo "RELION version: 3.1.3 "; exit 0; fi
while [ $# -gt 0 ]; do
  if [ "$1" = --pipeline_control ]; then folder=$2; fi
  shift
done
{body}
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stack, particles without poses and the true map."""
    folder = tmp_path_factory.mktemp("data")
    stack, table, truth = simulate_particles(COUNT, BOX, PIXEL, snr=1.0, optics_groups=2)
    write_stack(folder / "images.mrcs", stack.numpy(), PIXEL)
    write_map(folder / "truth.mrc", truth.numpy(), PIXEL)
    bare = table.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None, class_number=None)
    write_particles(folder / "particles.star", bare)
    return folder


@pytest.fixture
def work(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with links to the data."""
    for name in ("images.mrcs", "truth.mrc", "particles.star"):
        (tmp_path / name).symlink_to(data / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script in the place of a program of RELION's; `$folder` in it is the job's folder with a slash."""
    folder = tmp_path / "programs"

    def put(program: str, body: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / program).write_text(STAND_IN.format(body=body))
        (folder / program).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return put
