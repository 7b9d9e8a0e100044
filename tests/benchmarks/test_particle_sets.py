"""Particle sets as files: the same from the same seed, with the signal that they state, and no word of the truth in the particles."""

from pathlib import Path

import numpy as np
import pytest
import torch

from verglas.errors import InputError
from verglas.io.mrc import read_map, read_stack
from verglas.particles import StackImages, read_particles
from verglas.simulate.particle_sets import particle_set, write_particle_set
from verglas.simulate.particles import noise_free_images
from verglas.simulate.potential import Projector
from verglas.simulate.stand_in import stand_in
from verglas.simulate.variants import with_domain_turned, without_symmetry
from verglas.volume.fsc import fsc
from verglas.volume.symmetry import symmetry_operators

SMALL = {"n": 70, "box": 28, "pixel_size": 6.0, "per_micrograph": 30}


@pytest.fixture(scope="module")
def two_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_particle_set(folder, particle_set("two_states", **SMALL))
    return folder


def images(folder: Path) -> torch.Tensor:
    stacks = sorted((folder / "particles").glob("*.mrcs"))
    return torch.from_numpy(np.concatenate([read_stack(stack) for stack in stacks]))


def noise_of(folder: Path) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Signal and noise of every image, parted by the truth, and the optics groups."""
    truth = read_particles(folder / "truth.star")
    states = sorted((folder / "truth").glob("state*.mrc"))
    signal = noise_free_images(truth, [Projector(torch.from_numpy(read_map(state)[0])) for state in states])
    return signal, images(folder) - signal, truth.optics_index


def test_set_is_that_of_its_seed_whatever_its_size(two_states: Path, tmp_path: Path) -> None:
    write_particle_set(tmp_path / "fewer", particle_set("two_states", **SMALL | {"n": 40}))
    assert torch.equal(images(tmp_path / "fewer"), images(two_states)[:40])
    shorter, longer = (read_particles(folder / "truth.star").table for folder in (tmp_path / "fewer", two_states))
    assert shorter.equals(longer[:40])
    write_particle_set(tmp_path / "other", particle_set("two_states", **SMALL | {"n": 40, "seed": 2}))
    assert not torch.allclose(images(tmp_path / "other"), images(tmp_path / "fewer"), atol=1.0)


def test_last_micrograph_may_hold_one_particle_and_so_one_state(two_states: Path, tmp_path: Path) -> None:
    write_particle_set(tmp_path, particle_set("two_states", **SMALL | {"n": 61}))
    assert torch.equal(images(tmp_path), images(two_states)[:61])


def test_signal_and_noise_are_those_stated(two_states: Path) -> None:
    signal, noise, group = noise_of(two_states)
    assert abs(np.corrcoef(signal.flatten(), noise.flatten())[0, 1]) < 0.02
    first, second = noise[group == 0].std().item(), noise[group == 1].std().item()
    assert first == pytest.approx(1.0, abs=0.02) and second == pytest.approx(1.2, abs=0.02)
    # 0.05 against the mean variance of both groups; 70 particles of other views and defoci than those that set the scale
    assert signal.var().item() / ((1.0 + 1.44) / 2) == pytest.approx(0.05, rel=0.15)
    power = torch.fft.rfft2(noise[group == 0]).abs().square().mean(dim=0)
    assert power[0, 1:3].mean() > 1.4 * power[0, 10:14].mean()


def test_particles_hold_no_truth_and_are_in_the_truths_order(two_states: Path) -> None:
    particles, truth = read_particles(two_states / "particles.star"), read_particles(two_states / "truth.star")
    for name in ("rot", "tilt", "psi", "origin_x", "origin_y", "class_number"):
        assert name in truth and name not in particles
    assert not particles.column("ctf_bfactor").any() and (truth.column("ctf_bfactor") == 150).all()
    assert list(particles.column("image_name")) == list(truth.column("image_name"))
    assert len(particles) == 70 and len(particles.optics) == 2
    assert sorted(set(particles.column("micrograph_name"))) == ["mic_0001.mrc", "mic_0002.mrc", "mic_0003.mrc"]
    assert 0.4 < (truth.column("class_number") == 1).mean() < 0.8


def test_image_names_lead_to_the_images(two_states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two_states)
    source = StackImages(read_particles("particles.star"))
    assert torch.equal(source.preload().read(np.arange(70)), images(two_states))


def test_reference_is_state_1_to_40_angstrom(two_states: Path) -> None:
    reference, truth = (torch.from_numpy(read_map(two_states / name)[0]) for name in ("reference.mrc", "truth/state1.mrc"))
    curve = fsc(reference, truth)  # 168 Å: 40 Å is shell 4.2, RELION's edge two shells wide
    assert curve[1:4].min() > 0.999
    assert torch.fft.rfftn(reference).abs()[0, 0, 7:].max() < 1e-4 * torch.fft.rfftn(truth).abs().max()


def test_a_set_of_other_settings_is_never_taken(two_states: Path) -> None:
    before = images(two_states)
    write_particle_set(two_states, particle_set("two_states", **SMALL))
    assert torch.equal(images(two_states), before)
    with pytest.raises(InputError, match=r"snr 0\.05, not 0\.1"):
        write_particle_set(two_states, particle_set("two_states", **SMALL, snr=0.1))
    with pytest.raises(InputError, match="Known: d2, c1, two_states"):
        particle_set("c2")
    with pytest.raises(InputError, match="no mask of 150"):
        particle_set("d2", box=32, pixel_size=2.5)


def test_asymmetric_specimen_has_no_operator_of_its_parent() -> None:
    whole, part = stand_in(), without_symmetry(stand_in())
    assert part.mass_kda == pytest.approx(0.875 * whole.mass_kda, rel=0.02)
    assert np.average(part.position, axis=0, weights=part.atom_masses) == pytest.approx([0, 0, 0], abs=1e-6)
    chains = [part.position[part.chain == chain] for chain in "ABCD"]
    assert misfit(chains[0], chains[1]) < 1e-6 < 5 < misfit(chains[0], chains[3])
    assert len(chains[2]) == pytest.approx(len(chains[0]) / 2, rel=0.1)
    centres = np.array([chain.mean(axis=0) for chain in chains])
    assert abs(np.linalg.det(centres[1:] - centres[0])) > 30.0**3  # four lobes not in a plane


def misfit(first: np.ndarray, second: np.ndarray) -> float:
    """Rms distance of corresponding atoms after the best of the tetramer's operators and any shift, Å."""
    centred = [atoms - atoms.mean(axis=0) for atoms in (first, second)]
    return min(float(np.sqrt(((centred[0] @ turn.T - centred[1]) ** 2).sum(1).mean())) for turn in symmetry_operators("D2").numpy())


def test_second_state_keeps_the_symmetry_and_moves_half_of_every_chain() -> None:
    before, after = stand_in(), with_domain_turned(stand_in(), 25.0)
    moved = np.linalg.norm(after.position - before.position, axis=1)
    assert 0.4 < (moved > 1e-9).mean() < 0.6 and 4 < moved.max() < 20
    chains = [after.position[after.chain == chain] for chain in "ABCD"]
    for operator in symmetry_operators("D2").numpy():
        assert min(np.abs(chains[0] @ operator.T - other).max() for other in chains) < 1e-6
