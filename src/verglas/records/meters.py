"""What a running process takes: bytes read and written, energy of the host's packages and cards, bytes left on disk."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

_RAPL = Path("/sys/class/powercap")


class IoMeter:
    """Bytes that one process moved, sampled while it lives: `sample` often, the last sample counts. Its children aren't included."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/io")
        self._last: dict[str, int] = {}

    def sample(self) -> None:
        """Read the kernel's counters, if they can be read."""
        try:
            pairs = (line.split(": ") for line in self._path.read_text().splitlines())
            self._last = {name: int(value) for name, value in pairs}
        except (OSError, ValueError):
            pass

    def read(self) -> dict[str, int | None]:
        """`bytes_read` and `bytes_written` by calls, and what of it went to or came from the storage itself."""
        names = {"bytes_read": "rchar", "bytes_written": "wchar", "storage_read": "read_bytes", "storage_written": "write_bytes"}
        return {ours: self._last.get(kernel) for ours, kernel in names.items()}


class EnergyMeter:
    """Joules of the whole host between start and `read`: CPU packages by RAPL, cards by their mean power. None where not readable."""

    def __init__(self) -> None:
        self._start, self._rapl = time.monotonic(), _rapl_counters()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in read
        self._cards = None
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-lms", "1000"]
            self._cards = subprocess.Popen(query, stdout=self._log, stderr=subprocess.DEVNULL, start_new_session=True)

    def read(self) -> dict[str, float | None]:
        """End the measurement: `cpu_joule` and `gpu_joule`."""
        seconds = time.monotonic() - self._start
        return {"cpu_joule": self._cpu_joule(), "gpu_joule": self._gpu_joule(seconds)}

    def _cpu_joule(self) -> float | None:
        total, now = 0.0, _rapl_counters()
        for zone, before in self._rapl.items():
            if zone in now:
                turn = int(_read(zone / "max_energy_range_uj") or 0)
                total += (now[zone] - before + (turn if now[zone] < before else 0)) / 1e6
        return total if self._rapl else None

    def _gpu_joule(self, seconds: float) -> float | None:
        if self._cards is None:
            self._log.close()
            return None
        self._cards.terminate()
        self._cards.wait()
        self._log.seek(0)
        watts = [float(line) for line in self._log.read().split() if line.replace(".", "").isdigit()]
        self._log.close()
        cards = len((_query_cards() or "").splitlines()) or 1
        return sum(watts) / len(watts) * cards * seconds if watts else None


def bytes_left(folder: Path) -> tuple[int, int]:
    """Apparent and allocated bytes of the files in `folder`. They differ: holes, blocks, compression, parity of a parallel file system."""
    apparent = allocated = 0
    for path in folder.rglob("*"):
        try:
            facts = path.lstat()
        except FileNotFoundError:
            continue
        if not path.is_dir():
            apparent += facts.st_size
            allocated += facts.st_blocks * 512
    return apparent, allocated


def _rapl_counters() -> dict[Path, int]:
    zones = [zone for zone in _RAPL.glob("intel-rapl:*") if zone.name.count(":") == 1] if _RAPL.exists() else []
    found = {zone: _read(zone / "energy_uj") for zone in zones}
    return {zone: int(value) for zone, value in found.items() if value}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _query_cards() -> str | None:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return None
