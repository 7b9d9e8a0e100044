"""A project of ours in RELION 3.1.3: what it read from our files, not only that it read them."""

import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from interop.conftest import verglas
from verglas.errors import FileFormatError
from verglas.io.mrc import read_map, read_stack
from verglas.io.star import StarBlock, list_table, numbers, read_star
from verglas.particles import read_particles
from verglas.volume.fsc import fsc

pytestmark = pytest.mark.relion
Relion = Callable[[str], str]

SIZE = 72 * 2.8  # Å, of the box
REFINE, MASK, POST = "Refine3D/refine", "MaskCreate/mask/mask.mrc", "PostProcess/postprocess/postprocess.star"
DATA = f"{REFINE}/run_data.star"


def stars(project: Path) -> list[Path]:
    """Every STAR file with tables that jobs made, besides job.star and the graph."""
    of_relion = ("pipeline.star", "job.star", "coords_suffix_autopick.star")
    ours = [path for path in sorted(project.glob("*/job*/**/*.star")) if not path.name.endswith(of_relion)]
    assert len(ours) > 100
    return ours


def as_list(block: StarBlock) -> pd.DataFrame:
    return pd.DataFrame({label: [value] for label, value in block.items()}) if isinstance(block, dict) else block


def same_table(ours: pd.DataFrame, theirs: pd.DataFrame, where: str) -> None:
    """All columns, rows in order, text to the letter, sums and values of numbers as RELION prints them (5 decimals or more)."""
    assert len(ours) == len(theirs), f"{where}: RELION read {len(theirs)} of {len(ours)} rows"
    assert set(ours) == set(theirs), f"{where}: {set(ours) ^ set(theirs)}"
    for label in ours:
        try:
            mine, found = numbers(ours, label, where), numbers(theirs, label, where)
        except FileFormatError:
            assert ours[label].astype(str).tolist() == theirs[label].astype(str).tolist(), f"{where}: {label}"
            continue
        np.testing.assert_allclose(found, mine, rtol=2e-5, atol=6e-6, err_msg=f"{where}: {label}")
        assert found.sum() == pytest.approx(mine.sum(), rel=2e-5, abs=6e-6 * len(mine)), f"{where}: {label}"


def test_tables_with_optics_groups_pass_through_relion_unchanged(project: Path, relion: Relion, tmp_path: Path) -> None:
    """Movies, micrographs and particles, of every job and iteration."""
    seen: dict[str, int] = {}
    for path in stars(project):
        ours = read_star(path)
        if "optics" not in ours:
            continue
        relion(f"relion_star_handler --i {path} --o {tmp_path}/copy.star")
        theirs = read_star(tmp_path / "copy.star")
        assert list(theirs) == list(ours), path
        for name, block in ours.items():
            same_table(as_list(block), as_list(theirs[name]), f"{path}, {name}")
            seen[name] = seen.get(name, 0) + 1
        groups = as_list(ours["optics"])["rlnOpticsGroupName"].tolist()
        assert set(groups) <= {"first", "second"}
        (tmp_path / "copy.star").unlink()
    assert seen["movies"] == 3 and seen["micrographs"] >= 3 and seen["particles"] > 20, seen


OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnMicrographOriginalPixelSize #6
1 a 300 2.7 0.1 1.0


# version 30001

data_particles
"""


def loose_tables(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each table of a file as it stands there."""
    parts = re.split(r"(?m)^data_(\S*)[ \t]*$", path.read_text())
    yield from zip(parts[1::2], (re.sub(r"(?m)^# version.*$", "", text) for text in parts[2::2]))


def test_all_other_tables_pass_through_relion_unchanged(project: Path, relion: Relion, tmp_path: Path) -> None:
    """Picks, motion, models, samplings, optimisers and FSC curves, read by RELION's parser from the text as we wrote it.

    `relion_star_handler` hands on only tables by the name of particles, with optics groups: it is given our text under that name.
    """
    seen: set[str] = set()
    for path in stars(project):
        ours = read_star(path)
        if "optics" in ours:
            continue
        for name, text in loose_tables(path):
            kind = re.sub(r"\d+$", "", name)
            if kind in seen and "run_it" in path.name:
                continue
            (tmp_path / "in.star").write_text(OPTICS + text)
            relion(f"relion_star_handler --i {tmp_path}/in.star --o {tmp_path}/copy.star")
            same_table(as_list(ours[name]), as_list(read_star(tmp_path / "copy.star")["particles"]), f"{path}, {name}")
            (tmp_path / "copy.star").unlink()
            seen.add(kind)
    assert {"", "global_shift", "local_motion_model", "hot_pixels", "general", "fsc", "guinier", "sampling_directions"} <= seen, seen
    assert {"model_general", "model_classes", "model_class_", "model_groups", "model_group_", "optimiser_general"} <= seen, seen


def likeness(project: Path, first: Iterable[str], second: Iterable[str]) -> np.ndarray:
    """Correlation of image and image, each named as `000001@stack`."""
    stacks: dict[str, np.ndarray] = {}

    def image(name: str) -> np.ndarray:
        number, path = name.split("@")
        if path not in stacks:
            stacks[path] = read_stack(project / path)
        return stacks[path][int(number) - 1].ravel()

    return np.array([np.corrcoef(image(a), image(b))[0, 1] for a, b in zip(first, second, strict=True)])


def test_relion_extracts_from_our_micrographs_and_picks(project: Path, relion: Relion, tmp_path: Path) -> None:
    """The same particles, optics groups and images as our Extract."""
    extract = "Extract/extract"
    relion(
        "relion_preprocess --i Select/good_micrographs/micrographs.star --coord_dir AutoPick/pick/ "
        f"--coord_suffix _autopick.star --part_star {tmp_path}/p.star --part_dir {tmp_path}/ --extract --extract_size 72 --scale 32 "
        "--norm --bg_radius 12 --invert_contrast"
    )
    ours, theirs = read_particles(project / extract / "particles.star"), read_particles(tmp_path / "p.star")
    assert len(ours) == len(theirs) > 100
    key = ["micrograph_name", "coordinate_x", "coordinate_y"]
    mine, found = (table.table.sort_values(key).reset_index(drop=True) for table in (ours, theirs))
    pd.testing.assert_frame_equal(mine[key], found[key], check_dtype=False, atol=2e-5)
    assert likeness(project, mine["image_name"], found["image_name"]).min() > 0.9999
    assert theirs.optics.table["name"].tolist() == ours.optics.table["name"].tolist()
    assert theirs.optics.table["pixel_size"].tolist() == pytest.approx(ours.optics.table["pixel_size"].tolist())


def masked_fsc(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return fsc(torch.from_numpy(first * mask), torch.from_numpy(second * mask)).numpy()


def metric(project: Path, job: str, name: str) -> float:
    return float(json.loads((project / job / "record.json").read_text())["metrics"][name])


def test_relion_reconstructs_our_maps_from_our_particles(project: Path, relion: Relion, tmp_path: Path) -> None:
    """Both halves together, and each: FSC above 0.95 to the resolution of our map.

    In the mask, where the map is; without it to where the halves agree well: what both made of noise is not the same, as we
    weight several poses of a particle and `relion_reconstruct` takes the best one. The resolution is the last shell that these
    images have; a half, with half as many neighbours to interpolate from, must agree to the shell before it.
    """
    last = round(SIZE / metric(project, REFINE, "resolution"))
    mask, _ = read_map(project / MASK)
    halves = [read_map(project / REFINE / f"run_half{half}_class001_unfil.mrc")[0] for half in (1, 2)]
    between = fsc(torch.from_numpy(halves[0]), torch.from_numpy(halves[1])).numpy()
    good = int(np.argmax(between < 0.85))
    assert last >= 16 and good >= 12, (last, between)
    ours = {"--subset 1": halves[0], "--subset 2": halves[1], "": read_map(project / REFINE / "run_class001.mrc")[0]}
    for which, map_of_ours in ours.items():
        relion(f"relion_reconstruct --i {DATA} --o {tmp_path}/r.mrc --ctf --sym D2 {which}")
        theirs, pixel_size = read_map(tmp_path / "r.mrc")
        assert pixel_size == pytest.approx(SIZE / 40)
        inside = masked_fsc(map_of_ours, theirs, mask)
        assert (inside[1 : last if which else last + 1] > 0.95).all(), (which, inside)
        everywhere = masked_fsc(map_of_ours, theirs, np.ones_like(mask))
        assert (everywhere[1 : min(good, last)] > 0.95).all(), (which, everywhere)


@pytest.fixture(scope="module")
def continued(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`relion_refine` from our refined particles and map: two iterations of local search."""
    out = tmp_path_factory.mktemp("continued")
    command = (
        f"relion_refine --i {DATA} --o {out}/run --ref {REFINE}/run_class001.mrc --ini_high 12 --iter 2 --K 1 --tau2_fudge 1 "
        "--healpix_order 4 --sigma_ang 1.5 --offset_range 2 --offset_step 1 --sym D2 --ctf --pad 2 --particle_diameter 150 "
        "--flatten_solvent --zero_mask --oversampling 1 --norm --scale --dont_combine_weights_via_disc --random_seed 1 --j 1"
    )
    done = subprocess.run(command.split(), cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "is not a valid RELION argument" not in done.stdout + done.stderr
    return out


def test_relion_refines_our_particles_further(project: Path, continued: Path) -> None:
    """Every row with its name, half, CTF and optics; the map stays ours."""
    ours, theirs = read_star(project / DATA), read_star(continued / "run_it002_data.star")
    same_table(as_list(ours["optics"]), as_list(theirs["optics"]), "optics")
    mine, found = list_table(ours, "particles", DATA), list_table(theirs, "particles", "relion")
    assert set(mine) == set(found)
    moved = [label for label in mine if label.startswith(("rlnAngle", "rlnOrigin", "rlnNorm", "rlnLogLike", "rlnMaxValue", "rlnNrOf"))]
    assert len(moved) == 9
    order = pd.Index(found["rlnImageName"]).get_indexer(pd.Index(mine["rlnImageName"]))
    assert sorted(order) == list(range(len(mine)))
    same_table(mine.drop(columns=moved), found.iloc[order].reset_index(drop=True).drop(columns=moved), "particles")
    mask, _ = read_map(project / MASK)
    map_of_ours, theirs_map = read_map(project / REFINE / "run_class001.mrc")[0], read_map(continued / "run_it002_class001.mrc")[0]
    agreement = masked_fsc(map_of_ours, theirs_map, mask)
    assert (agreement[1:16] > 0.9).all(), agreement


def test_relion_postprocesses_our_halves(project: Path, relion: Relion, tmp_path: Path) -> None:
    """Resolution within one shell, and the same curves."""
    relion(f"relion_postprocess --mask {MASK} --i {REFINE}/run_half1_class001_unfil.mrc --o {tmp_path}/post --angpix -1 --adhoc_bfac -100")
    ours, theirs = read_star(project / POST), read_star(tmp_path / "post.star")
    shells = [SIZE / float(as_list(found["general"])["rlnFinalResolution"].iloc[0]) for found in (ours, theirs)]
    assert abs(shells[0] - shells[1]) < 1.01, shells
    assert SIZE / metric(project, "PostProcess/postprocess", "resolution") == pytest.approx(shells[0], abs=0.01)
    for curve in ("UnmaskedMaps", "MaskedMaps"):
        mine, found = (numbers(list_table(star, "fsc", ""), f"rlnFourierShellCorrelation{curve}", "") for star in (ours, theirs))
        # the last shell is empty in our maps: RELION correlates their rounding there
        np.testing.assert_allclose(mine[:-1], found[:-1], atol=0.002, err_msg=curve)
    sharp, found_map = read_map(project / "PostProcess/postprocess/postprocess.mrc")[0], read_map(tmp_path / "post.mrc")[0]
    assert np.corrcoef(sharp.ravel(), found_map.ravel())[0, 1] > 0.99


def test_relion_refines_defocus_from_our_postprocess(project: Path, relion: Relion, tmp_path: Path) -> None:
    """`relion_ctf_refine` finds halves and mask in our postprocess.star, keeps every row, and its defoci are ours."""
    relion(f"relion_ctf_refine --i {DATA} --f {POST} --o {tmp_path}/ --fit_defocus --kmin_defocus 30 --fit_mode fpmff --j 1")
    ours, theirs = read_particles(project / DATA), read_particles(tmp_path / "particles_ctf_refine.star")
    assert len(theirs) == len(ours)
    defoci = theirs.table.set_index("image_name")["defocus_u"].reindex(ours.column("image_name"))
    away = (defoci.to_numpy() - ours.column("defocus_u")).astype(float)
    assert np.isfinite(away).all() and 0 < np.median(np.abs(away)) < 500, away


def test_relion_polishes_from_our_motion(project: Path, relion: Relion, tmp_path: Path) -> None:
    """`relion_motion_refine` finds movies, gain, hot pixels and tracks by our micrographs' table; its images are ours."""
    relion(
        f"relion_motion_refine --i {DATA} --f {POST} --corr_mic MotionCorr/motion/corrected_micrographs.star --o {tmp_path}/ "
        "--first_frame 1 --last_frame -1 --s_vel 0.5 --s_div 5000 --s_acc 2 --combine_frames --bfac_minfreq 20 --bfac_maxfreq -1 --j 1"
    )
    ours, shiny = read_particles(project / DATA), read_particles(tmp_path / "shiny.star")
    assert len(shiny) == len(ours)
    place = ["micrograph_name", "coordinate_x", "coordinate_y"]
    found = shiny.table.set_index(place)["image_name"].reindex(pd.MultiIndex.from_frame(ours.table[place]))
    alike = likeness(project, ours.column("image_name"), found)
    assert np.median(alike) > 0.8, np.median(alike)


# Å, by width: particles and maps, micrographs, their spectra, and the picker's blob, which has a grid of its own
PIXELS = {32: SIZE / 32, 40: SIZE / 40, 512: 2.8, 256: 2.8, 37: 8.0}


def test_maps_and_stacks_open_in_other_programs(project: Path, relion: Relion) -> None:
    """mrcfile finds no fault, gemmi reads the volumes, RELION everything: pixel size, origin, mode and statistics are right."""
    counted = {"stack": 0, "volume": 0, "image": 0}
    for path in sorted(path for path in project.glob("*/job*/**/*.mrc*") if path.suffix in (".mrc", ".mrcs")):
        assert mrcfile.validate(path), path
        with mrcfile.open(path) as opened:
            data, header, voxel = np.array(opened.data), opened.header, opened.voxel_size
        assert header.mode == 2 and header.nsymbt == 0 and header.origin.tolist() == (0, 0, 0), path
        assert voxel.x == voxel.y and float(voxel.x) == pytest.approx(PIXELS[data.shape[-1]], rel=1e-5), path
        kind = "stack" if path.suffix == ".mrcs" else "image" if data.ndim == 2 or len(data) == 1 else "volume"
        sections = data.reshape(-1, *data.shape[-2:]) if kind == "stack" else [data]
        found = relion_statistics(relion(f"relion_image_handler --i {path} --stats"))
        assert len(found) == len(sections), f"{path}: RELION read {len(found)} of {len(sections)} images"
        # RELION never takes the first pixel for the smallest
        expected = [[s.mean(dtype=float), s.std(dtype=float), s.ravel()[1:].min(), s.max(), float(voxel.x)] for s in sections]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(data.std()) + 1e-12, err_msg=str(path))
        if kind == "volume":
            in_gemmi = gemmi.read_ccp4_map(str(path))
            assert np.array_equal(np.array(in_gemmi.grid, copy=True).transpose(2, 1, 0), data), path
            assert in_gemmi.grid.unit_cell.a == pytest.approx(data.shape[2] * float(voxel.x), rel=1e-5)
            assert float(voxel.z) == float(voxel.x) and [in_gemmi.header_i32(word) for word in (5, 6, 7)] == [0, 0, 0]
        counted[kind] += 1
    for name in read_star(project / "CtfFind/ctf/micrographs_ctf.star")["micrographs"]["rlnCtfImage"]:
        assert len(relion_statistics(relion(f"relion_image_handler --i {name} --stats"))) == 1, name
    assert counted["stack"] > 15 and counted["volume"] > 20 and counted["image"] > 10, counted


def relion_statistics(said: str) -> list[list[float]]:
    """Mean, deviation, smallest, largest and pixel size of each image that `relion_image_handler --stats` read."""
    lines = [line.replace(";", " ").split() for line in said.splitlines() if "avg=" in line]
    return [
        [float(words[words.index(key) + 1]) for key in ("avg=", "stddev=", "minval=", "maxval=")] + [float(words[-1])] for words in lines
    ]


def test_a_table_of_relion_is_imported_and_used(project: Path, continued: Path, tmp_path: Path) -> None:
    """What `relion_refine` wrote comes back by Import and is extracted again: the same rows, groups and halves."""
    verglas(project, "job", "Import", "--kind", "particles", "--files", f"{continued}/run_it002_data.star", "--out", f"{tmp_path}/back")
    theirs, back = read_particles(continued / "run_it002_data.star"), read_particles(tmp_path / "back/particles.star")
    pd.testing.assert_frame_equal(back.table[list(theirs.table)], theirs.table, check_dtype=False)
    pd.testing.assert_frame_equal(back.optics.table[list(theirs.optics.table)], theirs.optics.table, check_dtype=False)
    words = f"--micrographs Select/good_micrographs/micrographs.star --particles {tmp_path}/back/particles.star --out {tmp_path}/again"
    verglas(project, "job", "Extract", *words.split(), "--box-size", "72", "--rescale", "40")
    again = read_particles(tmp_path / "again/particles.star")
    assert len(again) == len(theirs)
    key = ["micrograph_name", "half", "rot"]
    mine, found = (table.table[key].sort_values(key).reset_index(drop=True) for table in (theirs, again))
    pd.testing.assert_frame_equal(mine, found, check_dtype=False)
    assert read_stack(tmp_path / "again" / Path(again.column("image_name")[0].split("again/")[1])).shape[1:] == (40, 40)
