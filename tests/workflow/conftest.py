"""Two small particle files in a fresh folder, and the command line on them."""

from collections.abc import Callable
from pathlib import Path

import pytest

import verglas.particles  # noqa: F401  imported once here, not by every job
from workflow.faults import FAULTS

STAR = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographOriginalPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
_rlnImagePixelSize #7
_rlnImageSize #8
_rlnImageDimensionality #9
{name} 1 1.5 {voltage} 2.7 0.1 1.5 64 2

# version 30001

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
000001@{name}.mrcs m1.mrc 1
000002@{name}.mrcs m1.mrc 1
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a.star and b.star, two particles each."""
    for name, voltage in (("a", 300), ("b", 200)):
        (tmp_path / f"{name}.star").write_text(STAR.format(name=name, voltage=voltage))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def job(work: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run `verglas job JoinStar` with a fault, in this process; returns the exit code."""
    from verglas.cli.job import run_command
    from verglas.errors import InputError
    from verglas.jobs import joinstar

    sound = joinstar.JOB

    def run(fault: str = "none", *words: str, files: tuple[str, ...] = ("a.star", "b.star")) -> int:
        monkeypatch.setattr(joinstar, "JOB", FAULTS[fault](sound))
        given = ["--files", *files, *words]
        given += [] if "--out" in given or (work / "default_pipeline.star").exists() else ["--out", "J"]
        try:
            return run_command("JoinStar", given)
        except InputError as error:
            print(f"ERROR: {error}")
            return 2

    return run
