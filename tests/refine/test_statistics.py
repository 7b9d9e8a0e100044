"""What a pass takes for given and what it learns: the classes' shares, and the noise of each optics group in each half."""

import pytest
import torch

from refine.sets import DIAMETER, particles, seen, unknown
from verglas.refine.assignments import from_particles
from verglas.refine.autorefine import refine
from verglas.refine.expectation import expect
from verglas.refine.grids import GivenPoses, PlaneGrid, SpaceGrid, no_shift, shifts_within
from verglas.refine.maximisation import spectrum
from verglas.refine.model import Model
from verglas.refine.search import Search
from verglas.refine.settings import Settings
from verglas.refine.start import first_state, starting_noise
from verglas.simulate.particles import noise_images
from verglas.volume.filters import lowpass
from verglas.volume.slices import pixel_list

BOX, PIXEL = 32, 6.0


@pytest.mark.parametrize("share", [0.9, 0.02])
@pytest.mark.parametrize("how", ["everywhere", "near", "given", "in the plane"])
def test_an_image_that_two_classes_explain_alike_is_shared_as_the_classes_are(how: str, share: float) -> None:
    """Twice the same reference, in noise in which every pose counts: the posterior is the prior, and all else is as with one class."""
    images, table, truth = particles(24, BOX, PIXEL, 0.3)
    view, rows = seen(images, table), torch.arange(24)
    own = from_particles(table, len(view.micrographs)) if how in ("near", "given") else unknown(table)
    pixels, shifts = pixel_list(BOX, 8, multiple=64), shifts_within(2.0, 2.0, None)
    all_of_it = {"fraction": 1 - 1e-6, "at_most": 1_000_000}
    search = {
        "everywhere": Search(SpaceGrid(1, "D2", None), shifts, pixels, pixels, pixels, symmetry="D2", **all_of_it),  # type: ignore[arg-type]
        "near": Search(SpaceGrid(3, "D2", None), shifts, pixels, pixels, pixels, symmetry="D2", local_sigma=5.0, **all_of_it),  # type: ignore[arg-type]
        "given": Search(GivenPoses(own.matrices), no_shift(), pixels, pixels, pixels, symmetry="D2", **all_of_it),  # type: ignore[arg-type]
        "in the plane": Search(PlaneGrid(30.0, None), shifts, pixels, pixels, pixels, **all_of_it),  # type: ignore[arg-type]
    }[how]
    reference = lowpass(truth, PIXEL, 25.0) if search.symmetry == "D2" else lowpass(truth.sum(0), PIXEL, 25.0, dims=2)
    noise, found = 30 * starting_noise(view, rows, own), []
    for shares in ([1.0], [share, 1 - share]):
        references = torch.stack([reference] * len(shares))
        tau2 = spectrum(references)[:, : view.shells]
        weight = torch.tensor(shares, dtype=torch.float64)
        found.append(expect(view, rows, own, Model(references, noise, tau2, 9 * torch.ones_like(tau2), weight, 6.0), search))
    (one, of_one), (two, of_two) = found
    assert (two.class_weight / 24 - weight).abs().max() < 2e-3 * weight.min()
    assert (of_two.classes == int(share < 0.5)).all()
    assert torch.allclose(of_two.log_likelihood, of_one.log_likelihood, atol=2e-3)
    assert torch.allclose(of_two.max_probability, of_one.max_probability * weight.max().float(), atol=1e-3)
    voxels = two.slices.data
    assert torch.allclose(voxels[0] * (1 - share), voxels[1] * share, atol=2e-3 * share * float(voxels[1].abs().max()))
    assert (voxels.sum(0) - one.slices.data[0]).abs().max() < 2e-3 * voxels.abs().max()


@pytest.mark.parametrize("correct_norm", [False, True])
def test_noise_is_that_of_each_optics_group_and_half(correct_norm: bool) -> None:
    """White in one group and coloured in the other, stronger in one half: from a flat spectrum for all to those of the noise alone.

    They settle there: what a spectrum says of all its images' loudness, the images' own corrections don't say again.
    """
    n = 160
    images, table, truth = particles(n, BOX, PIXEL, 0.2, groups=2)
    clean = images - noise_images(n, BOX, PIXEL, False, torch.Generator().manual_seed(1))
    group, half, generator = torch.arange(n) // 2 % 2, torch.arange(n) % 2, torch.Generator().manual_seed(5)
    white, coloured = (noise_images(n, BOX, PIXEL, kind, generator) for kind in (False, True))
    noise = torch.where((group == 0)[:, None, None], white, 1.5 * coloured) * (1 + 0.4 * half)[:, None, None]
    table = table.with_columns(optics_group=group.numpy() + 1)
    view = seen(clean + noise, table)
    own = from_particles(table, len(view.micrographs), half.numpy())
    power, _ = seen(noise, table).power_spectra(torch.arange(n), own)
    settings = Settings(
        dims=3,
        mask_diameter=DIAMETER,
        symmetry="D2",
        ini_high=15.0,
        healpix_order=3,
        local_order=3,
        iterations=2,
        absolute_greyscale=True,
        correct_norm=correct_norm,
        correct_scale=False,
    )
    state = first_state(view, own, truth[None], settings)
    for model in state.models:
        model.sigma2 = torch.full_like(model.sigma2, float(state.models[0].sigma2.mean()))
    *_, state = refine(view, state, settings)
    for number, model in enumerate(state.models):
        for kind in (0, 1):
            true = power[(half == number) & (group == kind)].mean(0) / (2 * view.pixels_of_shell)
            ratio = (model.sigma2[kind] / true)[1:13]
            assert (ratio - 1).abs().max() < 0.15 and abs(float(ratio.mean()) - 1) < 0.07, (number, kind, ratio)
