import subprocess

import mrcfile
import pytest
import torch
import torch_ctf

from verglas.optics.ctf import ctf, ctf_1d, phase_from_amplitude_contrast
from verglas.optics.microscope import interaction_constant, wavelength
from verglas.volume.fourier import frequency_grid, packed_pixels

MICROSCOPE = {"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}


def several(n=5):
    generator = torch.Generator().manual_seed(1)
    u = 8000 + 15000 * torch.rand(n, generator=generator)
    spread, angle, phase = (torch.rand(n, generator=generator) for _ in range(3))
    return {"defocus_u": u, "defocus_v": u - 1500 * spread, "defocus_angle": 180 * angle, "phase_shift": 90 * phase}


def test_constants_of_the_beam():
    assert wavelength(300) == pytest.approx(0.0196876, abs=1e-7) and wavelength(200) == pytest.approx(0.0250795, abs=1e-7)
    # Kirkland's table: 0.6526 and 0.7288 rad / (kV nm) at 300 and 200 kV
    assert interaction_constant(300) == pytest.approx(6.526e-4, abs=2e-7)
    assert interaction_constant(200) == pytest.approx(7.288e-4, abs=2e-7)


def test_value_at_zero_is_the_amplitude_contrast():
    zero = torch.zeros(1)
    assert ctf_1d(zero, defocus=15000.0, **MICROSCOPE).item() == pytest.approx(0.1)
    assert ctf_1d(zero, defocus=15000.0, phase_shift=40.0, **MICROSCOPE).item() == pytest.approx(0.716, abs=1e-3)
    assert float(phase_from_amplitude_contrast(0.1)) == pytest.approx(float(torch.atan(torch.tensor(0.1 / 0.99**0.5))))


def test_first_zero_of_a_weak_phase_object_lies_where_chi_is_pi():
    k = (1 / (wavelength(300) * 20000)) ** 0.5
    values = ctf_1d(torch.tensor([k * 0.99, k * 1.01]), defocus=20000.0, voltage=300.0, spherical_aberration=0.0, amplitude_contrast=0.0)
    assert values[0] > 0 > values[1]


@pytest.mark.parametrize("phase_shift", [0.0, 40.0])
def test_agrees_with_torch_ctf(phase_shift):
    theirs = torch_ctf.calculate_ctf_2d(
        defocus=1.4, astigmatism=0.1, astigmatism_angle=35.0, voltage=300.0, spherical_aberration=2.7, amplitude_contrast=0.1,
        phase_shift=phase_shift, pixel_size=1.5, image_shape=(63, 63), rfft=True, fftshift=False,
    )  # fmt: skip
    kx, ky = frequency_grid(63, 1.5)
    ours = ctf(kx, ky, defocus_u=15000.0, defocus_v=13000.0, defocus_angle=35.0, phase_shift=phase_shift, **MICROSCOPE)
    assert (ours - theirs).abs().max() < 2e-3  # their wavelength differs in the sixth digit


@pytest.mark.relion
@pytest.mark.parametrize("intact", [False, True])
def test_agrees_with_relions_simulated_ctf(tmp_path, intact):
    command = "relion_ctf_toolbox --simulate out.mrc --box 64 --angpix 1.5 --defU 15000 --defV 13000 --defAng 35 --phase_shift 40"
    subprocess.run(command.split() + ["--ctf_intact_first_peak"] * intact, cwd=tmp_path, check=True, capture_output=True)
    theirs = torch.tensor(mrcfile.read(tmp_path / "out.mrc")).squeeze()
    k = (torch.arange(64, dtype=torch.float64) - 32) / (64 * 1.5)
    ky, kx = torch.meshgrid(k, k, indexing="ij")
    values = {"defocus_u": 15000.0, "defocus_v": 13000.0, "defocus_angle": 35.0, "phase_shift": 40.0, **MICROSCOPE}
    ours = ctf(kx, ky, **values, intact_until_first_peak=intact)
    assert (ours - theirs).abs().max() < 2e-5
    assert bool((theirs[31:34, 31:34] == 1).all()) == intact


def test_particles_are_rows_on_any_list_of_frequencies():
    kx, ky = frequency_grid(32, 2.0)
    parameters = several() | MICROSCOPE | {"ctf_bfactor": torch.linspace(0, 80, 5), "ctf_scale": torch.linspace(0.8, 1.2, 5)}
    plane = ctf(kx, ky, **parameters)
    assert plane.shape == (5, 32, 17) and plane.dtype == torch.float32
    flat = packed_pixels(32).flat
    assert torch.allclose(ctf(kx.flatten()[flat], ky.flatten()[flat], **parameters), plane.flatten(1)[:, flat], atol=1e-6)
    for i in range(5):
        one = {name: value[i] if isinstance(value, torch.Tensor) else value for name, value in parameters.items()}
        assert torch.allclose(ctf(kx, ky, **one), plane[i], atol=1e-6)
    own = {name: value[:, None] if isinstance(value, torch.Tensor) else value for name, value in parameters.items()}
    scaled = torch.linspace(0.9, 1.1, 5)[:, None] * kx.flatten()[flat], torch.linspace(0.9, 1.1, 5)[:, None] * ky.flatten()[flat]
    row = ctf(scaled[0][3], scaled[1][3], **{name: v[3] if isinstance(v, torch.Tensor) else v for name, v in parameters.items()})
    assert torch.allclose(ctf(*scaled, **own)[3], row, atol=1e-6)


def test_float32_keeps_the_phase_at_high_defocus_and_resolution():
    kx, ky = frequency_grid(256, 0.65)
    values = several() | {"defocus_u": torch.full((5,), 30000.0), "defocus_v": torch.full((5,), 29500.0)} | MICROSCOPE
    exact = ctf(kx.double(), ky.double(), **values)
    assert (ctf(kx, ky, **values) - exact).abs().max() < 1e-3


def test_envelope_and_scale():
    k = torch.linspace(0, 0.3, 50)
    plain = ctf_1d(k, defocus=12000.0, **MICROSCOPE)
    damped = ctf_1d(k, defocus=12000.0, ctf_bfactor=60.0, ctf_scale=0.7, **MICROSCOPE)
    assert torch.allclose(damped, plain * 0.7 * torch.exp(-60 * k**2 / 4), atol=1e-6)
