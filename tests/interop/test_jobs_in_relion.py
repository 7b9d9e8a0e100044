"""The graph and the jobs of a project of ours in RELION 3.1.3: it keeps them, shows their settings, repeats them, cleans them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from interop.conftest import verglas
from verglas.io.star import read_star
from verglas.jobs.registry import job_type
from verglas.project.jobfiles import read_job_star, write_job_star
from verglas.project.pipeline import PIPELINE, Status, read_pipeline, write_pipeline
from verglas.project.relion_options import relion_options

pytestmark = pytest.mark.relion

STUB = """#!/bin/sh
echo "$(basename $0) $*" >> commands
while [ $# -gt 0 ]; do
  if [ "$1" = --pipeline_control ]; then touch "$2/RELION_JOB_EXIT_SUCCESS"; fi
  shift
done
"""


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    """A copy of the project that RELION may change."""
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True, ignore=shutil.ignore_patterns("*.png", "*.pt", "truth"))
    return copy


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of stand-ins for RELION's programs: each notes its command in the project and leaves the exit file."""
    folder = tmp_path / "programs"
    folder.mkdir()
    relion = Path(shutil.which("relion_refine") or "").parent
    for program in relion.glob("relion_*"):
        if program.name != "relion_pipeliner":
            (folder / program.name).write_text(STUB)
            (folder / program.name).chmod(0o755)
    return folder


def pipeliner(folder: Path, *words: str, programs: Path | None = None) -> str:
    """Run `relion_pipeliner`; its programs are those in folder `programs` first."""
    path = os.environ["PATH"] if programs is None else f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["relion_pipeliner", *words], cwd=folder, capture_output=True, text=True, timeout=60, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def folder_of(project: Path, alias: str) -> str:
    """`Class2D/job009/` of `Class2D/class2d`."""
    return str((project / alias).resolve().relative_to(project.resolve())) + "/"


def test_relion_keeps_our_graph_and_adds_the_next_job(project: Path, copied: Path) -> None:
    """All processes with type, status and alias, all files with their kind, all edges: nothing lost when RELION writes it again."""
    ours = read_pipeline(copied / PIPELINE)
    assert len(ours.processes) == 19 and all(process.status is Status.SUCCEEDED for process in ours.processes.values())
    mask, half = "MaskCreate/job018/mask.mrc", "Refine3D/job017/run_half1_class001_unfil.mrc"
    assert mask in ours.nodes and half in ours.nodes
    options = f"One of the 2 unfiltered half-maps: == {half};Solvent mask: == {mask}"
    pipeliner(copied, "--addJob", "PostProcess", "--addJobOptions", options)
    found = read_pipeline(copied / PIPELINE)
    added = f"PostProcess/job{ours.counter:03d}/"
    assert found.counter == ours.counter + 1 and list(found.processes) == [*ours.processes, added]
    assert {name: found.processes[name] for name in ours.processes} == ours.processes
    assert {name: found.nodes[name] for name in ours.nodes} == ours.nodes
    assert set(ours.inputs) <= set(found.inputs) and set(ours.outputs) <= set(found.outputs)
    assert {(half, added), (mask, added)} <= set(found.inputs)
    said = verglas(copied, "stats")
    assert "job017" in said


def test_relion_takes_our_exit_files(copied: Path) -> None:
    """Jobs entered as running end, for RELION, as their folders say."""
    graph = read_pipeline(copied / PIPELINE)
    failed, done = folder_of(copied, "Class3D/class3d"), folder_of(copied, "Extract/extract")
    for name in (failed, done):
        graph.processes[name].status = Status.RUNNING
    (copied / failed / "RELION_JOB_EXIT_SUCCESS").rename(copied / failed / "RELION_JOB_EXIT_FAILURE")
    write_pipeline(copied / PIPELINE, graph)
    pipeliner(copied, "--check_job_completion")
    found = read_pipeline(copied / PIPELINE).processes
    assert (found[failed].status, found[done].status) == (Status.FAILED, Status.SUCCEEDED)


def test_relion_cleans_our_jobs_gently(copied: Path) -> None:
    """Iterations go, what later jobs read stays."""
    before = read_pipeline(copied / PIPELINE)
    for alias, gone in (("Refine3D/refine", "run_it001_data.star"), ("Class2D/class2d", "run_it002_data.star")):
        name = folder_of(copied, alias)
        assert (copied / name / gone).exists()
        pipeliner(copied, "--gentle_clean", re.findall(r"\d+", name)[-1])
        assert not (copied / name / gone).exists(), f"{name}: RELION left {gone}"
        for process, node in before.outputs:
            assert process != name or (copied / node).exists(), f"{node} is gone"


# What RELION is to run for a job of ours; each must be in its command, beside all parameters of ours that have RELION's flag.
EXPECTED = {
    "Import/import_first": ["--do_movies", "--optics_group_name first", "--beamtilt_x 0.3", "--i simulated/movies/mic_000[135].tif"],
    "Import/reference": ["--do_other", "--i Refine3D/job014/run_class001.mrc"],
    "JoinStar/movies": ["--combine", "Import/job001/movies.star", "Import/job002/movies.star"],
    "MotionCorr/motion": ["--gainref simulated/gain.mrc", "--use_own", "--dose_weighting", "--save_noDW", "--grouping_for_ps 2"],
    "CtfFind/ctf": ["--i MotionCorr/job004/corrected_micrographs.star", "--use_given_ps"],
    "Select/good_micrographs": ["--i CtfFind/job005/micrographs_ctf.star", "--select rlnCtfMaxResolution", "--maxval 12"],
    "AutoPick/pick": ["--LoG", "--LoG_diam_min 100", "--LoG_diam_max 130"],
    "AutoPick/pick_template": [
        "--ref Select/job010/class_averages.mrcs",
        "--invert",
        "--ctf",
        "--ang 10",
        "--particle_diameter 140",
        "--min_distance 70",
    ],
    "Extract/extract": ["--coord_dir AutoPick/job007/", "--coord_suffix _autopick.star", "--scale 32", "--invert_contrast", "--norm"],
    "Extract/extract_again": ["--reextract_data_star Refine3D/job014/run_data.star", "--recenter", "--scale 40"],
    "Class2D/class2d": ["--K 3", "--psi_step 12", "--offset_step 2", "--ctf"],
    "InitialModel/initial_model": ["--sym D2", "--K 1", "--sgd_fin_resol 20", "--offset_range 6"],
    "Class3D/class3d": ["--healpix_order 2", "--offset_step 2", "--strict_highres_exp 20", "--ini_high 30", "--sym D2", "--firstiter_cc"],
    "Refine3D/refine": [
        "--auto_refine",
        "--healpix_order 2",
        "--auto_local_healpix_order 3",
        "--offset_step 2",
        "--low_resol_join_halves 40",
    ],
    "MaskCreate/mask": ["--extend_inimask 3", "--width_soft_edge 7", "--lowpass 15"],
    "PostProcess/postprocess": ["--adhoc_bfac -100", "--angpix -1", "--mask MaskCreate/job018/mask.mrc"],
}
# With us 0 or -1 stands for "find it", which RELION's windows have not: it gets a number instead.
AUTOMATIC = {"--grouping_for_ps": "-1", "--dAst": "0.0", "--min_distance": "0.0"}


def test_relion_repeats_our_jobs_with_our_settings(copied: Path, programs: Path) -> None:
    """From each job.star RELION makes a job, and from that a command: the program's stand-in notes it."""
    wrong = []
    for alias, expected in EXPECTED.items():
        command = command_of_relion(copied, alias.split("/")[0], f"{alias}/job.star", programs)
        wrong += [f"{alias}: no {words!r} in {command}" for words in expected if not has(command, words)]
        wrong += [f"{alias}: {words}" for words in differing(alias, copied, command)]
    assert not wrong, "\n".join(wrong)


DATA = "Refine3D/job017/run_data.star"
# Settings that the project's jobs do not have, the words that RELION's command must hold, and those that it must not.
OTHERS: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("Import/import_first", {"kind": "micrographs"}, ["--do_micrographs"], ["--do_movies"]),
    ("Import/reference", {"kind": "particles", "files": DATA}, ["--do_particles", f"--i {DATA}"], []),
    ("Import/reference", {"kind": "coordinates", "files": "picks/*.star"}, ["--do_coordinates"], []),
    ("MotionCorr/motion", {"gain_rot": 3, "gain_flip": 2}, ["--gain_rot 3", "--gain_flip 2"], []),
    ("MotionCorr/motion", {"gain_flip": 1, "grouping_for_ps": 3}, ["--gain_flip 1", "--grouping_for_ps 3"], []),
    ("MotionCorr/motion", {"grouping_for_ps": 0, "dose_weighting": False}, [], ["--grouping_for_ps", "--dose_weighting", "--save_noDW"]),
    ("AutoPick/pick", {"invert": False}, ["--Log_invert"], []),
    (
        "AutoPick/pick_template",
        {"references": None, "reference": "Import/job016/reference.mrc", "symmetry": "D2", "healpix_order": 2, "threshold": 0.3},
        ["--ref Import/job016/reference.mrc", "--healpix_order 2", "--sym D2", "--threshold 0.3"],
        ["--LoG"],
    ),
    ("Extract/extract", {"rescale": 0, "do_invert": False, "bg_diameter": 60.0}, ["--bg_radius 30"], ["--scale", "--invert_contrast"]),
    ("Extract/extract_again", {"recenter": False, "reset_offsets": True}, ["--reset_offsets"], ["--recenter"]),
    ("Class2D/class2d", {"limit_resolution": 9.0, "psi_step": 6.0}, ["--strict_highres_exp 9", "--psi_step 6"], []),
    ("Class2D/class2d", {"skip_align": True}, ["--skip_align"], ["--psi_step"]),
    ("Class3D/class3d", {"skip_align": True, "pad": 1}, ["--skip_align", "--pad 1"], ["--healpix_order"]),
    ("Class3D/class3d", {"local_search_sigma": 4.0, "healpix_order": 3}, ["--sigma_ang 4", "--healpix_order 3"], []),
    (
        "Refine3D/refine",
        {"absolute_greyscale": True, "solvent_correct_fsc": True, "mask": "MaskCreate/job018/mask.mrc", "local_search_order": 5},
        ["--solvent_correct_fsc", "--solvent_mask MaskCreate/job018/mask.mrc", "--auto_local_healpix_order 5"],
        ["--firstiter_cc"],
    ),
    (
        "Select/good_micrographs",
        {"action": "split", "select_from": "particles", "micrographs": None, "particles": DATA, "nr_split": 3, "do_random": True},
        [f"--i {DATA}", "--split", "--nr_split 3", "--random_order"],
        ["--select", "--size_split 100"],
    ),
    (
        "Select/good_micrographs",
        {"action": "duplicates", "select_from": "particles", "micrographs": None, "particles": DATA, "duplicate_threshold": 50.0},
        ["--remove_duplicates 50"],
        ["--select"],
    ),
    ("Select/good_micrographs", {"select_label": "defocus_u", "select_minval": 9000.0}, ["--select rlnDefocusU", "--minval 9000"], []),
    ("JoinStar/movies", {"kind": "particles", "files": [DATA, DATA]}, ["--check_duplicates rlnImageName"], []),
    ("MaskCreate/mask", {"lowpass_filter": 0.0, "inimask_threshold": 0.5}, ["--ini_threshold 0.5"], ["--lowpass"]),
    (
        "PostProcess/postprocess",
        {"adhoc_bfac": None, "do_auto_bfac": True, "do_skip_fsc_weighting": True, "low_pass": 12.0, "angpix": 5.0},
        ["--auto_bfac", "--autob_lowres 10", "--skip_fsc_weighting", "--low_pass 12", "--angpix 5"],
        ["--adhoc_bfac"],
    ),
]


def test_relion_takes_every_setting(copied: Path, programs: Path) -> None:
    """Those that the project's jobs leave as they are."""
    wrong = []
    for alias, changed, expected, absent in OTHERS:
        name = alias.split("/")[0]
        record = json.loads((copied / alias / "record.json").read_text())
        given: dict[str, Any] = {spec.name: [] if spec.many else None for spec in job_type(name).inputs}
        for read in record["inputs"]:
            given[read["name"]] = [*given[read["name"]], read["path"]] if isinstance(given[read["name"]], list) else read["path"]
        options = relion_options(name, given | record["params"] | changed)
        write_job_star(copied, job_type(name).relion_number, options, continues=False)
        command = command_of_relion(copied, name, "job.star", programs)
        wrong += [f"{alias}, {changed}: no {words!r} in {command}" for words in expected if not has(command, words)]
        wrong += [f"{alias}, {changed}: {words!r} in {command}" for words in absent if has(command, words)]
    assert not wrong, "\n".join(wrong)


def command_of_relion(project: Path, job: str, job_star: str, programs: Path) -> str:
    """The command that RELION runs for a job.star: a new job of the project, whose program is a stand-in."""
    (project / "commands").unlink(missing_ok=True)
    number = read_pipeline(project / PIPELINE).counter
    pipeliner(project, "--addJobFromStar", job_star)
    words = ("--RunJobs", f"{job}/job{number:03d}/", "--schedule", f"s{number}", "--sec_wait_after", "0")
    pipeliner(project, *words, programs=programs)
    return (project / "commands").read_text()


def has(command: str, words: str) -> bool:
    """Whether a command has a flag, and the value after it where one is given (as a number where it is one)."""
    flag, _, value = words.partition(" ")
    found = re.search(rf"(?<!\S){re.escape(flag)}(?!\S)(?: +(\S+))?", command)
    return found is not None and (not value or same(value, found[1]))


def same(ours: str, theirs: str | None) -> bool:
    try:
        return float(ours) == pytest.approx(float(theirs or "nothing"), rel=1e-4)
    except ValueError:
        return ours == theirs


def differing(alias: str, project: Path, command: str) -> list[str]:
    """Flags of RELION in the command whose value is not that of our parameter."""
    params = json.loads((project / alias / "record.json").read_text())["params"]
    found = []
    for name, info in job_type(alias.split("/")[0]).params.model_fields.items():
        extra = info.json_schema_extra
        flag = extra["flag"] if isinstance(extra, dict) else ""
        value = params[name]
        if not flag or isinstance(value, bool) or value is None or AUTOMATIC.get(str(flag)) == str(value):
            continue
        given = re.search(rf"(?<!\S){re.escape(str(flag))} +(\S+)", command)
        if given and not same(str(value), given[1]):
            found.append(f"{flag} {given[1]}, ours is {value} in {command}")
    return found


def test_relion_runs_a_job_of_ours_again(copied: Path) -> None:
    """For real: RELION post-processes from our job.star, and we read what it did."""
    number = read_pipeline(copied / PIPELINE).counter
    pipeliner(copied, "--addJobFromStar", "PostProcess/postprocess/job.star")
    name = f"PostProcess/job{number:03d}/"
    pipeliner(copied, "--RunJobs", name, "--schedule", "again", "--sec_wait_after", "0")
    found = read_pipeline(copied / PIPELINE)
    assert found.processes[name].status is Status.SUCCEEDED and found.nodes[name + "postprocess.star"] == 14
    ours, theirs = (read_star(copied / folder / "postprocess.star")["general"] for folder in ("PostProcess/postprocess", name))
    # one shell of 20: RELION counts the last one, which is empty in our maps, as the mask fills it
    assert float(theirs["rlnFinalResolution"]) == pytest.approx(float(ours["rlnFinalResolution"]), rel=0.06)
    assert float(theirs["rlnBfactorUsedForSharpening"]) == pytest.approx(float(ours["rlnBfactorUsedForSharpening"]), rel=0.02)
    assert read_job_star(copied / name)[1]["adhoc_bfac"] == "-100.0"
