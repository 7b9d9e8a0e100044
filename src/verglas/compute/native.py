"""Compiled code for this processor: a C++ source beside a module, built once for the processor at hand and kept in the user's cache.

    library = native_library(Path(__file__).with_name("slices.cpp"))
    if library is not None: library.project(...)

Everything compiled has a twin in plain torch, which defines it and serves where there is no compiler; `why_not_native` says why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

# what makes sums and products free to be reordered; -ffast-math itself would also change how the whole process rounds tiny numbers
_LOOSE = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-freciprocal-math", "-ffinite-math-only", "-fno-math-errno")
_FLAGS = ("-O3", "-march=native", *_LOOSE, "-std=c++17", "-shared", "-fPIC")
_INCLUDED = re.compile(r'^#include "(.+)"', re.MULTILINE)  # headers of ours, by their path in the package
_SWITCH = "VERGLAS_NATIVE"  # 0: use the plain code


def native_library(source: Path) -> ctypes.CDLL | None:
    """The library of a C++ source, or None where it cannot be built or VERGLAS_NATIVE is 0."""
    return None if os.environ.get(_SWITCH) == "0" else _load(source)[0]


def built_library(source: Path) -> ctypes.CDLL:
    """The library of a source that `native_library` is known to give. RuntimeError: it cannot be built after all, and why."""
    library = native_library(source)
    if library is None:
        raise RuntimeError(f"{source.name} is not compiled: {why_not_native(source)}")
    return library


def why_not_native(source: Path) -> str:
    """Why `native_library` gives None for a source, in a few words; empty where it doesn't."""
    return f"{_SWITCH} is 0" if os.environ.get(_SWITCH) == "0" else _load(source)[1]


def address(values: torch.Tensor) -> ctypes.c_void_p:
    """Where the values of a contiguous tensor on the CPU lie."""
    assert values.is_contiguous() and values.device.type == "cpu"
    return ctypes.c_void_p(values.data_ptr())


def threads_for(items: int) -> int:
    """As many threads as torch computes in, but no more than there are items, and one at least."""
    return max(1, min(torch.get_num_threads(), items))


def in_threads(function: Callable[[int, int], object], threads: int | None = None) -> None:
    """`function(number, threads)` for every number at once; a compiled function lets go of Python's lock while it runs."""
    threads = threads or torch.get_num_threads()
    if threads == 1:
        function(0, 1)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(function, number, threads) for number in range(threads)]:
            done.result()


@functools.cache
def _load(source: Path) -> tuple[ctypes.CDLL | None, str]:
    compiler = os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler is None:
        return None, "no C++ compiler"
    package = source.parents[1]
    headers = [package / name for name in _INCLUDED.findall(source.read_text())]
    code = [path.read_bytes() for path in (source, *headers)]
    key = hashlib.sha256(b"\0".join([*code, compiler.encode(), " ".join(_FLAGS).encode(), _processor()])).hexdigest()[:16]
    try:
        folder = _cache()
        built = folder / f"{source.stem}-{key}.so"
        if not built.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                part = Path(scratch) / built.name
                command = [*shlex.split(compiler), *_FLAGS, f"-I{package}", str(source), "-o", str(part)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    return None, f"{compiler} failed: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else done.returncode}"
                part.replace(built)
        return ctypes.CDLL(str(built)), ""
    except OSError as error:
        return None, f"{error.strerror or error}"


def _processor() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return "\n".join(next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags", "Features")).encode()


def _cache() -> Path:
    """The user's cache, or a folder of this user's own where there is no home."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    for folder in (home / "verglas", Path(tempfile.gettempdir()) / f"verglas-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    raise OSError("no folder for compiled code can be written")
