"""The potential in absolute units, and its projections against sums over the atoms."""

import numpy as np
import pytest
import torch

from verglas.simulate.potential import ICE_POTENTIAL, VOLT_ANGSTROM_SQUARED, VOLUME_PER_DALTON, Projector, potential_map, scattering_factor
from verglas.simulate.specimen import Specimen
from verglas.volume.rotations import euler_to_matrix


def few_atoms(n: int = 60, seed: int = 0) -> Specimen:
    random = np.random.default_rng(seed)
    return Specimen(
        name="atoms",
        symmetry="C1",
        position=random.normal(0, 12, (n, 3)),
        element=random.choice(["C", "N", "O", "S"], n),
        b_factor=random.uniform(25, 60, n),
        chain=np.array(["A"] * n),
    )


def analytic(specimen: Specimen, position: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Transform of the projected potential (V Å³) at frequencies k [m, 2], summed over the atoms."""
    k2 = (k**2).sum(axis=1)
    hydrogen = sum(a * np.exp(-b * k2 / 4) for a, b in zip(*scattering_factor("H")))
    total = np.zeros(len(k), complex)
    for place, element, b_factor, riding, mass in zip(
        position, specimen.element, specimen.b_factor, specimen.hydrogens, specimen.atom_masses
    ):
        factor = sum(a * np.exp(-b * k2 / 4) for a, b in zip(*scattering_factor(str(element)))) + riding * hydrogen
        volume = VOLUME_PER_DALTON * mass
        ice = ICE_POTENTIAL * volume * np.exp(-np.pi * volume ** (2 / 3) * k2)
        damped = (VOLT_ANGSTROM_SQUARED * factor - ice) * np.exp(-b_factor * k2 / 4)
        total += damped * np.exp(-2j * np.pi * k @ place[:2])
    return total


def test_scattering_factor_of_carbon() -> None:
    """2.51 Å at zero angle (International Tables C, 4.3.1.1)."""
    a, b = scattering_factor("C")
    assert a.sum() == pytest.approx(2.509, abs=0.01)
    assert (b > 0).all()


@pytest.mark.parametrize("pixel_size", [1.4, 2.8])
def test_map_has_the_potential_in_absolute_units(pixel_size: float) -> None:
    specimen = few_atoms()
    volume = potential_map(specimen, 64, pixel_size)
    k = np.array([[0, 0], [4, 0], [9, 5], [0, 15], [20, 0], [-17, 22]]) / (64 * pixel_size)
    expected = analytic(specimen, specimen.position, k)
    index = (np.arange(64) - 32) * pixel_size
    wave = np.exp(-2j * np.pi * (k[:, 0, None, None] * index + k[:, 1, None, None] * index[:, None]))
    found = (volume.sum(dim=0).numpy() * wave).sum(axis=(1, 2)) * pixel_size**3
    assert np.abs(found - expected).max() < 2e-3 * abs(expected[0])


def test_projections_follow_the_convention() -> None:
    """Slices at random angles against the sum over rotated atoms: (A r)[:2], 2 % in amplitude (linear interpolation, padded twice).

    The zero frequency is left out: a point on the grid is not smoothed by the interpolation, and comes out 2 % too strong.
    """
    specimen = few_atoms(seed=1)
    box, pixel_size = 64, 1.4
    angles = torch.tensor([[30.0, 50.0, 70.0], [-100.0, 120.0, 10.0], [10.0, 5.0, -60.0]])
    slices = Projector(potential_map(specimen, box, pixel_size)).slices(euler_to_matrix(angles))
    index = np.array([[3, 1], [2, -5], [10, 4], [0, 9], [15, -12], [25, 3]])
    for matrix, found in zip(euler_to_matrix(angles).numpy(), slices):
        expected = analytic(specimen, specimen.position @ matrix.T, index / (box * pixel_size))
        values = found[index[:, 1] % box, index[:, 0]].numpy() * pixel_size**3
        assert np.abs(values - expected).max() < 0.02 * np.sqrt((np.abs(expected) ** 2).mean()) + 0.02 * np.abs(expected).max()


def test_a_protein_has_the_mean_inner_potential_of_proteins() -> None:
    """6 to 9 V over its volume: the map (above ice at 4.5 V) summed over 1.212 Å³ a dalton."""
    from verglas.simulate.stand_in import stand_in

    protein = stand_in()
    volume = potential_map(protein, 64, 2.8)
    mean = float(volume.sum()) * 2.8**3 / (VOLUME_PER_DALTON * 1000 * protein.mass_kda) + ICE_POTENTIAL
    assert 6 < mean < 9
