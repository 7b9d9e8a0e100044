"""The compiled sampling against its twin in torch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from verglas.compute import native
from verglas.volume import slices_native
from verglas.volume.rotations import euler_to_matrix, random_rotations
from verglas.volume.slices import FourierSums, Projector, pixel_list

compiled = pytest.mark.skipif(native.native_library(slices_native.SOURCE) is None, reason="no C++ compiler")


def orientations(n: int, dims: int, generator: torch.Generator) -> torch.Tensor:
    """Random rotations [n, 3, 3], of flat maps in their plane."""
    if dims == 3:
        return random_rotations(n, generator).float()
    return euler_to_matrix(torch.nn.functional.pad(360 * torch.rand(n, 1, generator=generator), (2, 0))).float()


def slices_of(box: int, shell: int, padding: int, least: int, dims: int = 3) -> tuple[Projector, torch.Tensor, tuple]:
    """A map of noise, 9 orientations, and pixels with values and weights of 9 slices."""
    generator = torch.Generator().manual_seed(box)
    projector = Projector(torch.randn([1, *[box] * dims], generator=generator), shell, padding)
    pixels = pixel_list(box, shell, min_shell=least, multiple=64)
    values = torch.randn(9, len(pixels), generator=generator, dtype=torch.complex64)
    matrices = orientations(9, dims, generator)
    matrices[0] = torch.eye(3)  # points on grid points
    return projector, matrices, (pixels, values, torch.rand(9, len(pixels), generator=generator))


def summed(like: Projector, matrices: torch.Tensor, pixels: object, *values: torch.Tensor) -> FourierSums:
    sums = FourierSums(like.box, like.dims, like.max_shell, like.padding)
    sums.add(matrices, pixels, *values)  # type: ignore[arg-type]
    return sums


@compiled
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("box", "shell", "padding", "least"), [(24, 11, 2, 1), (25, 12, 2, 0), (31, 9, 1, 1), (16, 7, 3, 0)])
def test_slices_and_sums_are_those_of_the_twin(
    dims: int, box: int, shell: int, padding: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    projector, matrices, (pixels, values, weights) = slices_of(box, shell, padding, least, dims)
    ours = projector.project(matrices, pixels)
    sums = [summed(projector, matrices, pixels, *given).data for given in ((values, weights), (values,))]
    monkeypatch.setenv("VERGLAS_NATIVE", "0")
    theirs = projector.project(matrices, pixels)
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    assert not ours[:, pixels.count :].abs().any()
    for mine, given in zip(sums, ((values, weights), (values,))):
        plain = summed(projector, matrices, pixels, *given).data
        assert (mine - plain).abs().max() < 2e-6 * plain.abs().max()


@compiled
@pytest.mark.parametrize(("box", "padding", "dims"), [(24, 2, 3), (25, 1, 3), (25, 2, 2)])
def test_sums_are_the_transpose_of_slices(box: int, padding: int, dims: int) -> None:
    shell = (box - 1) // 2
    generator = torch.Generator().manual_seed(3)
    volume = torch.randn([1, *[box] * dims], generator=generator)
    projector, pixels = Projector(volume, shell, padding), pixel_list(box, shell)
    values = torch.randn(7, len(pixels), generator=generator, dtype=torch.complex64)
    matrices = orientations(7, dims, generator)
    forward = (values.conj() * projector.project(matrices, pixels)).sum().real
    backward = (volume * summed(projector, matrices, pixels, values).adjoint()).sum()
    assert abs(forward - backward) < 1e-5 * (forward.abs() + values.abs().square().sum().sqrt())


@compiled
@pytest.mark.parametrize("dims", [2, 3])
def test_sums_are_the_same_bits_with_any_number_of_threads(dims: int) -> None:
    projector, matrices, (pixels, values, weights) = slices_of(24, 11, 2, 1, dims)
    threads, found = torch.get_num_threads(), []
    many = [each.repeat(8, *[1] * (each.dim() - 1)) for each in (matrices, values, weights)]
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append((summed(projector, many[0], pixels, *many[1:]).data, projector.project(many[0], pixels)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][0], sums) and torch.equal(found[0][1], slices) for sums, slices in found[1:])


def test_without_a_compiler_the_twin_serves_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "room" / "slices.cpp"
    source.parent.mkdir()
    source.write_text("this is not C++")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert native.native_library(source) is None and "failed" in native.why_not_native(source)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert native.why_not_native(source.with_name("other.cpp")) == "no C++ compiler"
    monkeypatch.setenv("VERGLAS_NATIVE", "0")
    assert native.native_library(slices_native.SOURCE) is None
    assert native.why_not_native(slices_native.SOURCE) == "VERGLAS_NATIVE is 0"


@compiled
def test_tiny_numbers_stay_what_they_are() -> None:
    """A library that is built carelessly has the processor flush them to 0 in the whole process."""
    native.native_library(slices_native.SOURCE)
    assert np.float32(1e-40) * np.float32(0.5) > 0


@compiled
def test_a_changed_header_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for answer in (1, 2):
        source = tmp_path / f"package{answer}" / "room" / "same.cpp"
        source.parent.mkdir(parents=True)
        source.with_name("same.h").write_text(f"constexpr int answer = {answer};\n")
        source.write_text('#include "room/same.h"\nextern "C" int tell() { return answer; }\n')
        library = native.native_library(source)
        assert library is not None and library.tell() == answer
