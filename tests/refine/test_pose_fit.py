"""Continuous refinement of poses: slopes against differences, poses against truth, spread against errors, nodes against moments."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from refine.particles_for_tests import simulated
from refine.sets import particles, seen, without_poses
from verglas.compute import native
from verglas.particles import ParticleSet
from verglas.refine import accumulate, curvature, curvature_native, expectation
from verglas.refine.assignments import from_particles, split_halves
from verglas.refine.autorefine import refine
from verglas.refine.curvature import curvature_kernels, local_shape, plain_sums
from verglas.refine.expectation import expect
from verglas.refine.grids import SpaceGrid, shifts_within
from verglas.refine.maximisation import spectrum
from verglas.refine.model import Model
from verglas.refine.observations import shift_factors
from verglas.refine.pose_fit import Posterior, Prior, fit_poses, nodes
from verglas.refine.search import Found, Search
from verglas.refine.settings import Settings
from verglas.refine.start import first_state, starting_noise
from verglas.refine.state import load_state, save_state
from verglas.scores.poses import pose_errors
from verglas.volume import slices
from verglas.volume.filters import lowpass
from verglas.volume.rotations import axis_rotation, euler_to_matrix, geodesic, matrix_to_euler, random_rotations, rotation_distance
from verglas.volume.slices import Pixels, Projector, pixel_list
from verglas.volume.symmetry import symmetrise_map, symmetry_operators
from volume.maps_for_tests import chain

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(native.native_library(curvature_native.SOURCE) is None, reason="no C++ compiler")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
N = 200


def blobs(box: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A lump without symmetry, two pixels fine."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(box, dtype=torch.float64) - box // 2] * 3, indexing="ij"), dim=-1)
    centres = 0.12 * box * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    return torch.stack([torch.exp(-(grid - centre).square().sum(-1) / 4) for centre in centres]).sum(0).to(dtype)


def turned(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Poses turned by rotation vectors [n, 3] in radians."""
    return axis_rotation(vectors, torch.rad2deg(vectors.norm(dim=1))) @ matrices


def images_of(projector: Projector, pixels: Pixels, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whitened images [n, k], their CTFs, true poses and true shifts; a scale of the map that gives poses to about a degree."""
    generator = torch.Generator().manual_seed(1)
    dtype = projector.table.dtype
    poses = random_rotations(N, generator).to(dtype)
    shifts = 0.4 * torch.randn(N, 2, generator=generator, dtype=dtype)
    ctf = (0.2 + torch.rand(N, len(pixels), generator=generator, dtype=dtype)) * pixels.valid
    images = ctf * projector.project(poses, pixels) * shift_factors(pixels, -shifts)
    noisy = torch.view_as_complex(torch.randn(N, len(pixels), 2, generator=generator, dtype=dtype))
    return images + noise * noisy * pixels.valid, ctf, poses, shifts


def test_slopes_are_those_of_the_log_likelihood() -> None:
    pixels = pixel_list(48, 18, multiple=64)
    projector = Projector(blobs(48)[None], 18)
    images, ctf, poses, shifts = images_of(projector, pixels)
    generator = torch.Generator().manual_seed(2)
    at = turned(poses, 0.02 * torch.randn(N, 3, generator=generator, dtype=torch.float64))

    def value(matrices: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        sampled = projector.project(matrices, pixels)
        whole = (images * ctf * shift_factors(pixels, moved)).conj() * sampled
        return whole.real.sum(1) - 0.5 * (ctf.square() * sampled.abs().square()).sum(1)

    found = local_shape(projector, pixels, images * ctf * shift_factors(pixels, shifts), ctf, at)
    assert torch.allclose(found.value, value(at, shifts))
    step = 1e-4
    for axis in range(5):
        change = step * torch.eye(5, dtype=torch.float64)[axis].expand(N, 5)
        ahead, behind = (value(turned(at, sign * change[:, :3]) if axis < 3 else at, shifts + sign * change[:, 3:]) for sign in (1, -1))
        slope = (ahead - behind) / (2 * step)
        # slopes of the interpolated transform jump at its grid points, which a difference may straddle
        assert (found.slope[:, axis] - slope).norm() < 2e-3 * slope.norm()
    assert torch.equal(found.curvature, found.curvature.mT)
    assert (torch.linalg.eigvalsh(found.curvature) > 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("box", "shell", "padding"), [(32, 15, 2), (33, 11, 1), (48, 20, 2)])
def test_compiled_sums_are_the_plain_ones(device: str, box: int, shell: int, padding: int) -> None:
    pixels = pixel_list(box, shell, multiple=64, device=device)
    projector = Projector(blobs(box, torch.float32)[None].to(device), shell, padding)
    generator = torch.Generator().manual_seed(3)
    poses = random_rotations(37, generator).float().to(device)
    ctf = torch.rand(37, len(pixels), generator=generator).to(device) * pixels.valid
    moved = torch.randn(37, len(pixels), dtype=torch.complex64, generator=generator).to(device) * pixels.valid
    kernels = curvature_kernels(projector.table)
    assert kernels is not None
    plain = plain_sums(projector, pixels, moved, ctf, poses)
    compiled = kernels.local_sums(projector, pixels, moved, ctf, poses)
    assert ((compiled - plain).abs() < (1e-5 if device == "cpu" else 3e-3) * plain.abs().amax(0)).all()
    assert kernels.local_sums(projector, pixels, moved[:0], ctf[:0], poses[:0]).shape == (0, curvature_native.SUMS)


def fitted(noise: float, away: float) -> tuple[Posterior, torch.Tensor, torch.Tensor]:
    """Posteriors from `away` degrees off the truth, true poses and shifts."""
    pixels = pixel_list(48, 18, multiple=64)
    projector = Projector(0.025 * blobs(48, torch.float32)[None], 18)
    images, ctf, poses, shifts = images_of(projector, pixels, noise)
    direction = torch.nn.functional.normalize(torch.randn(N, 3, generator=torch.Generator().manual_seed(4)), dim=1)
    start = turned(poses, torch.deg2rad(torch.tensor(away)) * direction), torch.zeros(N, 2)
    prior = Prior(1.0, start[0], 100.0, torch.zeros(N, 2))
    return fit_poses(projector, pixels, images, ctf, [start], prior, most_steps=10), poses, shifts


def test_poses_without_noise_are_found() -> None:
    posterior, poses, shifts = fitted(0.0, 3.0)
    assert rotation_distance(posterior.matrices, poses).max() < 0.1
    assert (posterior.shifts - shifts).abs().max() < 0.01


def test_errors_are_as_large_as_the_posterior_says() -> None:
    posterior, poses, shifts = fitted(1.0, 1.0)
    errors = torch.cat([torch.deg2rad(geodesic(poses.double() @ posterior.matrices.double().mT)), (shifts - posterior.shifts).double()], 1)
    squared = torch.einsum("ni,nij,nj->n", errors, torch.linalg.inv(posterior.covariance), errors)
    assert 0.2 < rotation_distance(posterior.matrices, poses).median() < 3
    assert 4.2 < squared.mean() < 6.0  # five degrees of freedom; 200 images tell the mean to 0.22


def test_a_far_start_is_never_made_worse() -> None:
    pixels = pixel_list(32, 12, multiple=64)
    projector = Projector(blobs(32, torch.float32)[None], 12)
    images, ctf, poses, _ = images_of(projector, pixels, 1.0)
    start, none = turned(poses, torch.full((N, 3), 0.6)), torch.zeros(N, 2)
    prior = Prior(1e3, start, 1e3, none)
    before = local_shape(projector, pixels, images * ctf, ctf, start).value
    assert (fit_poses(projector, pixels, images, ctf, [(start, none)], prior).log_top >= before.double() - 1e-3).all()


def test_the_likelier_of_two_starts_is_taken() -> None:
    pixels = pixel_list(32, 12, multiple=64)
    projector = Projector(blobs(32, torch.float32)[None], 12)
    images, ctf, poses, shifts = images_of(projector, pixels)
    far, near = (turned(poses, torch.full((N, 3), away)) for away in (1.0, 0.01))
    prior = Prior(1e3, far, 1e3, shifts)
    kept = far.clone()
    found = fit_poses(projector, pixels, images, ctf, [(far, shifts), (near, shifts)], prior)
    assert rotation_distance(found.matrices, poses).max() < 0.5
    assert torch.equal(far, kept)  # what is given is left alone


def test_a_sharp_prior_holds_the_pose() -> None:
    pixels = pixel_list(32, 12, multiple=64)
    projector = Projector(blobs(32, torch.float32)[None], 12)
    images, ctf, poses, _ = images_of(projector, pixels)
    start, none = turned(poses, torch.full((N, 3), 0.02)), torch.zeros(N, 2)
    held = fit_poses(projector, pixels, images, ctf, [(start, none)], Prior(1e-5, start, 1e-5, none))
    assert rotation_distance(held.matrices, start).max() < 0.02
    assert held.shifts.abs().max() < 1e-3


def test_nodes_have_the_moments_of_the_posterior() -> None:
    generator = torch.Generator().manual_seed(5)
    root = 0.01 * torch.randn(20, 5, 5, generator=generator, dtype=torch.float64)
    posterior = Posterior(random_rotations(20, generator).float(), torch.randn(20, 2, generator=generator), torch.zeros(20), root @ root.mT)
    matrices, shifts, left = nodes(posterior)
    vectors = torch.deg2rad(geodesic(matrices.double() @ posterior.matrices.double()[:, None].mT))
    both = torch.cat([vectors, (shifts - posterior.shifts[:, None]).double()], dim=-1)
    second = torch.einsum("nqi,nqj->nij", both, both) / both.shape[1]
    second[:, 3:, 3:].diagonal(dim1=1, dim2=2).add_(left)
    covariance = posterior.covariance.clone()
    for found in (second, covariance):
        found[:, 3, 4] = found[:, 4, 3] = 0.0  # the shifts' own correlation, given the rotation, is left out
    assert (second - covariance).abs().max() < 2e-3 * covariance.abs().max()
    assert both.mean(1).abs().max() < 1e-4


def test_the_largest_share_is_that_of_a_cell() -> None:
    covariance = torch.diag(torch.tensor([0.02, 0.02, 0.02, 0.5, 0.5], dtype=torch.float64) ** 2)[None]
    posterior = Posterior(torch.eye(3)[None], torch.zeros(1, 2), torch.zeros(1, dtype=torch.float64), covariance)
    small, large = 1e-3**3 * 0.1**2, 1.0
    density = 1 / (2 * torch.pi) ** 2.5 / covariance.det().sqrt()
    assert torch.allclose(posterior.largest_share(small), density.double() * small, rtol=0.02)
    assert posterior.largest_share(large) > 0.999


def posed(group: str, box: int) -> tuple[torch.Tensor, ParticleSet, torch.Tensor]:
    """Images, true poses and the map of 24 particles of a symmetry."""
    if group == "D2":
        return particles(24, box, 6.0, 0.3)
    truth = symmetrise_map(torch.roll(chain(box, 6.0, seed=2, atoms=300, radius=30.0), (3, 2, 4), (0, 1, 2)), group)
    table, images, rotations, origins = simulated(truth, 6.0, 24, snr=5.0, shift=3.0)
    poses = dict(zip(("rot", "tilt", "psi"), matrix_to_euler(rotations.double()).T.numpy()))
    return images.read(np.arange(24)), table.with_columns(**poses, origin_x=origins[:, 0].numpy(), origin_y=origins[:, 1].numpy()), truth


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("fit", "group", "box"), [("found", "D2", 32), ("last", "D2", 32), ("found", "C3", 33), ("last", "O", 33)])
def test_a_pass_by_compiled_code_is_the_plain_one(device: str, fit: str, group: str, box: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, table, truth = posed(group, box)
    view = seen(images, table, device)
    own = from_particles(table, len(view.micrographs), device=device)
    tau2 = spectrum(truth[None]).to(device)[:, : view.shells]
    rows = torch.arange(24, device=device)
    share = torch.ones(1, dtype=torch.float64, device=device)
    model = Model(truth[None].to(device), starting_noise(view, rows, own), tau2, 9 * torch.ones_like(tau2), share, 6.0)
    coarse, score, full = (pixel_list(box, shell, multiple=64, device=device) for shell in (8, 12, 15))
    grid = SpaceGrid(3, group, torch.Generator().manual_seed(2))
    shifts = shifts_within(1.5, 1.0, None, device)
    search = Search(grid, shifts, coarse, score, full, symmetry=group, local_sigma=5.0, offset_step=1.0, fit=fit)
    with monkeypatch.context() as plain:
        plain.setattr(expectation, "fast_products", lambda _: nullcontext())
        compiled = expect(view, rows, own, model, search)
        for module, name in ((slices, "slice_kernels"), (accumulate, "comparison_kernels"), (curvature, "curvature_kernels")):
            plain.setattr(module, name, lambda _: None)
        torch_alone = expect(view, rows, own, model, search)
    tolerance = 3e-3 if device == "cpu" else 5e-2  # of slices in halves fits end elsewhere, by a small part of the deviation
    for mine, theirs in zip(compiled[0].tensors(), torch_alone[0].tensors()):
        assert (mine - theirs).norm() < tolerance * theirs.norm()
    for field in fields(Found):
        mine, theirs = (getattr(each[1], field.name).double() for each in (compiled, torch_alone))
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1), field.name
    assert (compiled[1].significant == 6).all() and (compiled[1].max_probability <= 1).all()
    true = euler_to_matrix(torch.from_numpy(table.angles())).float().to(device)
    off = torch.stack([rotation_distance(compiled[1].matrices, true @ each) for each in symmetry_operators(group).to(true)]).amin(0)
    assert off.median() < 3 and off.max() < 12  # whichever copy of its last pose the grid holds, an image is fitted


def test_a_refinement_goes_from_searches_to_fits_to_its_end(tmp_path: Path) -> None:
    images, table, truth = particles(150, 32, 6.0, 0.3)
    view = seen(images, without_poses(table))
    settings = Settings(dims=3, mask_diameter=150.0, symmetry="D2", ini_high=40.0, healpix_order=1, local_order=2, seed=1)
    own = from_particles(without_poses(table), len(view.micrographs), split_halves(table, 1)[0])
    state = first_state(view, own, lowpass(truth, 6.0, 40.0)[None], settings)
    ways = []
    for after in refine(view, state, settings):
        ways.append(after.sampling.fit)
        if after.sampling.fit == "found":  # a run that goes on from here is the same run
            save_state(tmp_path / "state.pt", after)
            again, here = (next(refine(view, each, settings)).assignments for each in (load_state(tmp_path / "state.pt"), after))
            assert torch.equal(again.matrices, here.matrices)
    first = ways.index("found")
    assert first > 0 and set(ways[:first]) == {""} and set(ways[first + 1 :]) == {"last"}
    assert after.progress.fine_enough and after.progress.finished
    errors = pose_errors(after.assignments.angles(), torch.from_numpy(table.angles()), "D2").summary()
    assert errors["pose_median"] < 4 and errors["within_10_degrees"] > 0.97


def test_a_state_from_before_there_were_fits_is_read(tmp_path: Path) -> None:
    images, table, truth = particles(20, 32, 6.0, 0.3)
    view = seen(images, table)
    own = from_particles(table, len(view.micrographs), split_halves(table, 1)[0])
    save_state(tmp_path / "state.pt", first_state(view, own, truth[None], Settings(dims=3, mask_diameter=150.0, symmetry="D2")))
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    del content["sampling"]["fit"]
    torch.save(content, tmp_path / "state.pt")
    assert load_state(tmp_path / "state.pt").sampling.fit == ""
