"""The floors of the house: a room imports only from rooms below it."""

import ast
from pathlib import Path

import pytest

import verglas

PACKAGE = Path(verglas.__file__).parent
FLOOR = {
    "errors": 0,
    "version": 0,
    "compute": 1,
    "io": 1,
    "optics": 1,
    "volume": 1.1,
    "scores": 1.2,
    "particles": 1.5,
    "micrograph": 2,
    "refine": 2,
    "simulate": 3,
    "records": 3,
    "project": 3,
    "pictures": 3.5,
    "jobs": 4,
    "relion": 4.5,
    "workflow": 5,
    "bench": 6,
    "cli": 7,
    "__main__": 8,
}
# A picture is drawn from arrays alone: it knows no room but the maths of maps.
PICTURES_MAY_USE = {"volume", "optics", "errors"}


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that the module imports, at its top or inside a function."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "verglas" else [node.module or ""]
        rooms |= {name.split(".")[1] for name in names if name.startswith("verglas.")}
    return rooms - {"__version__"}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem not in ("__init__",)]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"{room} is not on a floor of the house"
    for other in imported_rooms(path) - {room}:
        assert FLOOR[other] < FLOOR[room], f"{path.name}: {room} imports {other}, which is not below it"
        if room == "pictures":
            assert other in PICTURES_MAY_USE, f"{path.name}: pictures draws arrays and imports {other}"


def test_quick_rooms_import_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "pandas", "scipy", "matplotlib", "mrcfile", "gemmi"}
    for room in ("jobs", "records", "cli", "project"):
        for path in (PACKAGE / room).glob("*.py"):
            top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
            names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
            assert not names & heavy, f"{room}/{path.name} imports {names & heavy} at its top"
