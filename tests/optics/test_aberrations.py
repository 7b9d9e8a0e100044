import subprocess

import mrcfile
import pytest
import torch

from verglas.optics.aberrations import aberration_phase, even_index, odd_index, zernike
from verglas.optics.ctf import ctf
from verglas.volume.fourier import frequency_grid, irfft_centred, rfft_centred, shell_index

SIZE, PIXEL = 48, 2.0
BEAM = {"voltage": 300.0, "spherical_aberration": 2.7}


def write_mrc(path, values, stack=False):
    with mrcfile.new(path) as file:
        file.set_data(values.float().numpy())
        file.voxel_size = PIXEL
        if stack:
            file.set_image_stack()


def write_star(path, optics, contrast, row):
    """A STAR file of one particle; `optics`: more columns of the optics table."""
    optics = {
        "OpticsGroupName": "one", "OpticsGroup": 1, "Voltage": 300, "SphericalAberration": 2.7, "AmplitudeContrast": contrast,
        "ImagePixelSize": PIXEL, "ImageSize": SIZE, "ImageDimensionality": 2, **optics,
    }  # fmt: skip
    names = ["ImageName", "OpticsGroup", "AngleRot", "AngleTilt", "AnglePsi", "DefocusU", "DefocusV", "DefocusAngle"]
    tables = [("optics", optics), ("particles", dict(zip(names, ["000001@p.mrcs", 1, *row])))]
    text = ""
    for name, table in tables:
        labels = "".join(f"_rln{label} #{i + 1}\n" for i, label in enumerate(table))
        text += f"\n# version 30001\n\ndata_{name}\n\nloop_\n{labels}{' '.join(map(str, table.values()))}\n\n"
    path.write_text(text)


def relion(command, folder):
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


def as_list(coefficients):
    return "[" + ",".join(map(str, coefficients)) + "]"


def test_order_of_the_coefficients():
    assert [even_index(i) for i in range(9)] == [(0, 0), (2, -2), (2, 0), (2, 2), (4, -4), (4, -2), (4, 0), (4, 2), (4, 4)]
    assert [odd_index(i) for i in range(6)] == [(1, -1), (1, 1), (3, -3), (3, -1), (3, 1), (3, 3)]


@pytest.mark.parametrize("n, m", [(0, 0), (1, -1), (2, 0), (2, 2), (3, -1), (4, 0), (4, -2), (5, 3), (6, 0)])
def test_polynomials_are_zernikes(n, m):
    radius, angle = torch.rand(200, dtype=torch.float64), torch.rand(200, dtype=torch.float64) * 6.28
    explicit = {
        (0, 0): radius**0, (1, 1): radius, (2, 0): 2 * radius**2 - 1, (2, 2): radius**2, (3, 1): 3 * radius**3 - 2 * radius,
        (4, 0): 6 * radius**4 - 6 * radius**2 + 1, (4, 2): 4 * radius**4 - 3 * radius**2, (5, 3): 5 * radius**5 - 4 * radius**3,
        (6, 0): 20 * radius**6 - 30 * radius**4 + 12 * radius**2 - 1,
    }  # fmt: skip
    turn = torch.sin(-m * angle) if m < 0 else torch.cos(m * angle)
    values = zernike(radius * angle.cos(), radius * angle.sin(), n, m)
    assert torch.allclose(values, explicit[n, abs(m)] * turn, atol=1e-12)


def test_the_worked_formula_of_beam_tilt_and_its_shapes():
    kx, ky = frequency_grid(16, 1.5)
    tilt = torch.tensor([[1.2, -0.7], [0.0, 0.0]])
    factor = aberration_phase(kx, ky, **BEAM, beam_tilt=tilt)
    assert factor.shape == (2, 16, 9) and torch.allclose(factor[1], torch.ones(16, 9, dtype=torch.complex64))
    turn = 2 * torch.pi * 2.7e7 * 0.0196876**2 * (kx**2 + ky**2) * (kx * 1.2e-3 - ky * 0.7e-3)
    assert torch.allclose(factor[0], torch.polar(torch.ones_like(turn), -turn), atol=1e-4)
    assert aberration_phase(kx, ky, **BEAM, beam_tilt=tilt[0]).shape == (16, 9)
    assert torch.allclose(aberration_phase(-kx, -ky, **BEAM, beam_tilt=tilt), factor.conj(), atol=1e-6)
    each = {"voltage": torch.tensor([300.0, 200.0]), "spherical_aberration": torch.tensor([2.7, 1.4])}
    flat = aberration_phase(
        kx.flatten(), ky.flatten(), **each, odd_zernike=torch.ones(2, 6), beam_tilt=tilt, mag=torch.eye(2).expand(2, 2, 2)
    )
    assert flat.shape == (2, 144) and torch.allclose(flat.abs(), torch.ones(2, 144))


def test_magnification_of_a_particle_is_the_ctf_at_m_k():
    kx, ky = frequency_grid(24, 1.5)
    mag = torch.tensor([[[1.02, 0.01], [-0.015, 0.99]], [[1.0, 0.0], [0.0, 1.0]]])
    values = {"defocus_u": torch.tensor([9000.0, 9000.0]), "defocus_v": 8000.0, "defocus_angle": 20.0, "amplitude_contrast": 0.1, **BEAM}
    both = ctf(kx, ky, **values, mag=mag)
    moved = ctf(1.02 * kx + 0.01 * ky, -0.015 * kx + 0.99 * ky, **values)
    assert torch.allclose(both[0], moved[0], atol=1e-4) and torch.allclose(both[1], ctf(kx, ky, **values)[1], atol=1e-6)
    assert torch.allclose(ctf(kx, ky, **values, mag=mag[0]), moved, atol=1e-4)


@pytest.mark.relion
@pytest.mark.parametrize("what", ["even", "mag"])
def test_ctf_with_aberrations_is_that_of_relion_project(tmp_path, what):
    coefficients = [0.3, 40.0, -30.0, 25.0, 900.0, -700.0, 500.0, 600.0, -800.0]
    mag = torch.tensor([[1.02, 0.01], [-0.015, 0.99]], dtype=torch.float64)
    optics = {"EvenZernike": as_list(coefficients)}
    if what == "mag":
        optics = {f"MagMat{i}{j}": float(mag[i, j]) for i in (0, 1) for j in (0, 1)}
    generator = torch.Generator().manual_seed(2)
    write_mrc(tmp_path / "map.mrc", torch.randn(SIZE, SIZE, SIZE, generator=generator))
    write_mrc(tmp_path / "p.mrcs", torch.randn(1, SIZE, SIZE, generator=generator), stack=True)
    write_star(tmp_path / "p.star", optics, 0.1, [31, 47, 0, 9000, 8000, 25])
    relion("relion_project --i map.mrc --o plain --ang p.star", tmp_path)
    relion("relion_project --i map.mrc --o with --ang p.star --ctf", tmp_path)
    plain, seen = (rfft_centred(torch.tensor(mrcfile.read(tmp_path / f"{n}.mrcs")).squeeze().double()) for n in ("plain", "with"))
    kx, ky = (k.double() for k in frequency_grid(SIZE, PIXEL))
    values = {"defocus_u": 9000.0, "defocus_v": 8000.0, "defocus_angle": 25.0, "amplitude_contrast": 0.1, **BEAM}
    ours = ctf(kx, ky, **values, **({"mag": mag} if what == "mag" else {"even_zernike": torch.tensor(coefficients)}))
    inside = (shell_index(SIZE) < SIZE // 2 - 1) & (kx > 0) & (plain.abs() > 0.01 * plain.abs().mean())
    assert ((seen / plain).real - ours)[inside].abs().max() < 2e-3
    assert (ctf(kx, ky, **values) - ours)[inside].abs().max() > 0.02


@pytest.mark.relion
@pytest.mark.parametrize("what", ["odd", "tilt"])
def test_phases_are_those_that_relion_reconstruct_takes_off(tmp_path, what):
    odd, tilt = [300.0, -240.0, 300.0, 150.0, -120.0, -350.0], [6.0, -4.0]
    optics = {"OddZernike": as_list(odd)} if what == "odd" else {"BeamTiltX": tilt[0], "BeamTiltY": tilt[1]}
    point = irfft_centred(torch.ones(1, SIZE, SIZE // 2 + 1, dtype=torch.complex64), SIZE)
    write_mrc(tmp_path / "p.mrcs", point, stack=True)
    for name, columns in (("plain", {}), ("with", optics)):
        # hardly any contrast transfer, so that the image and its reconstruction stay a smooth transform
        write_star(tmp_path / f"{name}.star", columns, 0.95, [0, 0, 0, 0, 0, 0])
        relion(f"relion_reconstruct --i {name}.star --o {name}.mrc --ctf --refdim 2", tmp_path)
    plain, seen = (rfft_centred(torch.tensor(mrcfile.read(tmp_path / f"{n}.mrc")).squeeze().double()) for n in ("plain", "with"))
    kx, ky = (k.double() for k in frequency_grid(SIZE, PIXEL))
    given = {"odd_zernike": torch.tensor(odd)} if what == "odd" else {"beam_tilt": torch.tensor(tilt)}
    factor = aberration_phase(kx, ky, **BEAM, **given)
    shell = shell_index(SIZE)
    some = (shell > 1) & (shell <= 13) & (kx > 0)

    def rms(ratio):
        return float(torch.angle(ratio)[some].square().mean().sqrt())

    # the reconstruction itself adds a tenth of a radian of its own
    assert rms(seen / plain * factor) < 0.2 < 0.6 < rms(seen / plain / factor)
