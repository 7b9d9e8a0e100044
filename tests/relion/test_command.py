"""RELION's command line from the declarations: what it says for each type, what it refuses, and that RELION knows every option."""

import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from verglas.errors import InputError
from verglas.jobs.declaration import JobType
from verglas.jobs.registry import MODULES, job_type
from verglas.relion import install
from verglas.relion.command import arguments, extra_options, going_on, split_options, value_of
from verglas.relion.engine import by_relion, why_not
from verglas.relion.programs import PROGRAMS, program_of

PARTICLES, MAP, MASK = Path("p.star"), Path("map.mrc"), Path("mask.mrc")
REFINE = "--dont_combine_weights_via_disc --pool 30 --flatten_solvent --zero_mask --oversampling 1"
ENGINE = "--random_seed 1 --particle_diameter 150 --ctf --offset_range 5 --offset_step 2 --norm --scale --pad 2"

# type, parameters, inputs, and the whole command
COMMANDS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (
        "Class2D",
        {"mask_diameter": 150.0},
        {"particles": PARTICLES},
        f"--o J/run --i p.star {ENGINE} --K 50 --iter 25 --tau2_fudge 2 --psi_step 12 {REFINE} --j 2 --pipeline_control J/",
    ),
    (
        "Class2D",
        {"mask_diameter": 150.0, "do_ctf_correction": False, "do_norm_correction": False, "limit_resolution": 7.5, "pad": 1},
        {"particles": PARTICLES},
        "--o J/run --i p.star --random_seed 1 --particle_diameter 150 --offset_range 5 --offset_step 2 --scale --pad 1 --K 50 --iter 25 "
        f"--tau2_fudge 2 --psi_step 12 --strict_highres_exp 7.5 {REFINE} --j 2 --pipeline_control J/",
    ),
    (
        "Class2D",
        {"mask_diameter": 150.0, "classes": 4, "skip_align": True},
        {"particles": PARTICLES},
        "--o J/run --i p.star --random_seed 1 --particle_diameter 150 --ctf --offset_range 5 --offset_step 2 --norm --scale --pad 2 --K 4 "
        f"--iter 25 --tau2_fudge 2 --psi_step 12 --skip_align {REFINE} --j 2 --pipeline_control J/",
    ),
    (
        "InitialModel",
        {"mask_diameter": 150.0, "symmetry": "D2", "classes": 2},
        {"particles": PARTICLES},
        "--o J/run --i p.star --random_seed 1 --particle_diameter 150 --ctf --sym D2 --K 2 --sgd_ini_resol 40 --sgd_fin_resol 20 "
        "--sgd_ini_subset 150 --sgd_fin_subset 500 --sgd_write_iter 8 --sgd --denovo_3dref --sgd_ini_iter 50 "
        "--sgd_inbetween_iter 200 --sgd_fin_iter 50 --norm --scale --healpix_order 1 --offset_range 6 --offset_step 2 "
        f"{REFINE} --j 2 --pipeline_control J/",
    ),
    (
        "Class3D",
        {"mask_diameter": 150.0, "symmetry": "D2", "local_search_sigma": 3.0},
        {"particles": PARTICLES, "reference": [MAP], "mask": MASK},
        f"--o J/run --i p.star --ref map.mrc --solvent_mask mask.mrc {ENGINE} --K 3 --iter 25 --sym D2 --tau2_fudge 4 --ini_high 60 "
        f"--firstiter_cc --healpix_order 2 --sigma_ang 3 {REFINE} --j 2 --pipeline_control J/",
    ),
    (
        "Class3D",
        {"mask_diameter": 150.0, "classes": 2, "absolute_greyscale": True, "skip_align": True},
        {"particles": PARTICLES, "reference": [MAP, Path("other.mrc")]},
        f"--o J/run --i p.star --ref J/references.star {ENGINE} --K 2 --iter 25 --sym C1 --tau2_fudge 4 --ini_high 60 --healpix_order 2 "
        f"--skip_align {REFINE} --j 2 --pipeline_control J/",
    ),
    (
        "Refine3D",
        {"mask_diameter": 150.0, "iterations": 20, "solvent_correct_fsc": True},
        {"particles": PARTICLES, "reference": MAP, "mask": MASK},
        f"--o J/run --i p.star --ref map.mrc --solvent_mask mask.mrc {ENGINE} --sym C1 --ini_high 60 --firstiter_cc --healpix_order 2 "
        "--auto_local_healpix_order 4 --auto_iter_max 20 --low_resol_join_halves 40 --solvent_correct_fsc --tau2_fudge 1 "
        f"--auto_refine --split_random_halves {REFINE} --j 2 --pipeline_control J/",
    ),
    (
        "MaskCreate",
        {"inimask_threshold": -0.01, "lowpass_filter": 0.0, "molecular_weight": 150.0},
        {"map": MAP},
        "--o J/mask.mrc --i map.mrc --lowpass -1 --ini_threshold -0.01 --extend_inimask 3 --width_soft_edge 3 --j 2 --pipeline_control J/",
    ),
    (
        "PostProcess",
        {},
        {"half1": MAP, "mask": MASK},
        "--o J/postprocess --i map.mrc --mask mask.mrc --random_seed 1 --angpix -1 --auto_bfac --autob_lowres 10 --autob_highres 0 "
        "--low_pass -1 --pipeline_control J/",
    ),
    (
        "PostProcess",
        {"adhoc_bfac": -120.0, "low_pass": 0.0, "angpix": 1.2, "fn_mtf": "mtf.star", "mtf_angpix": 0.7, "do_skip_fsc_weighting": True},
        {"half1": MAP, "half2": Path("two.mrc"), "mask": MASK},
        "--o J/postprocess --i map.mrc --i2 two.mrc --mask mask.mrc --random_seed 1 --angpix 1.2 --autob_lowres 10 --autob_highres 0 "
        "--adhoc_bfac -120 --mtf mtf.star --mtf_angpix 0.7 --skip_fsc_weighting --low_pass 0 --pipeline_control J/",
    ),
]


def command(name: str, params: dict[str, Any], inputs: dict[str, Any], extra: str = "") -> list[str]:
    declared = job_type(name)
    return arguments(declared, declared.params(**params), inputs, Path("J"), threads=2, extra=extra_options(extra))


@pytest.mark.parametrize("name, params, inputs, expected", COMMANDS, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(COMMANDS)])
def test_the_command(name: str, params: dict[str, Any], inputs: dict[str, Any], expected: str) -> None:
    assert sorted(split_options(command(name, params, inputs))) == sorted(split_options(expected.split()))


def test_every_type_with_a_program_has_a_command_here() -> None:
    assert {name for name, *_ in COMMANDS} == set(PROGRAMS)


@pytest.mark.relion
@pytest.mark.parametrize("name", PROGRAMS)
def test_relion_knows_every_option(name: str) -> None:
    """All that its help lists; `--pipeline_control` it takes without listing it, as the runs show."""
    said = subprocess.run([program_of(name).name, "--help"], capture_output=True, text=True).stdout
    known = set(re.findall(r"(--\w+) (?:\(.*?\) )?:", said)) | {"--pipeline_control"}
    assert len(known) > 10, said[:500]
    used = {word for one, params, inputs, _ in COMMANDS if one == name for word in command(one, params, inputs) if word.startswith("--")}
    assert used and used <= known, used - known
    declared = {str((info.json_schema_extra or {}).get("flag", "")) for info in job_type(name).params.model_fields.values()}
    beyond = {"--random_seed"} if name == "MaskCreate" else {"--j"} if name == "PostProcess" else set()
    assert declared - {""} - known == beyond


# What RELION cannot be told, and the option that the error must name
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("Class2D", {"coarse_precision": "float32"}, {}, "--coarse-precision"),
    ("Class2D", {"device": "cuda:1"}, {}, "--device"),
    ("Class3D", {"coarse_precision": "bf16"}, {}, "--coarse-precision"),
    ("Refine3D", {"coarse_precision": "bf16"}, {}, "--coarse-precision"),
    ("InitialModel", {"starts": 3}, {}, "--starts"),
    ("InitialModel", {"iterations": 30}, {}, "--iterations"),
    ("InitialModel", {"symmetry": "D2", "do_run_C1": True}, {}, "--do-run-C1"),
    ("InitialModel", {"offset_range": 10.0}, {}, "--offset-range"),
    ("InitialModel", {"most_particles": 0}, {}, "--most-particles"),
    ("MaskCreate", {}, {}, "--inimask-threshold"),
    ("MaskCreate", {"molecular_weight": 150.0}, {}, "--inimask-threshold"),
    ("PostProcess", {}, {"model": Path("1ado.cif")}, "--model"),
    ("PostProcess", {"model_assembly": "1"}, {}, "--model-assembly"),
    ("Class2D", {}, {"particles": Path("set.cs")}, "--particles"),
]


@pytest.mark.parametrize("name, params, inputs, option", REFUSED)
def test_what_relion_cannot_express_is_named(name: str, params: dict[str, Any], inputs: dict[str, Any], option: str) -> None:
    needed = {"mask_diameter": 150.0} if "mask_diameter" in job_type(name).params.model_fields else {}
    with pytest.raises(InputError, match=f"^{option}: ") as caught:
        command(name, needed | params, inputs)
    assert str(why_not(job_type(name), job_type(name).params(**needed, **params), inputs)) == str(caught.value)


NEEDED: dict[str, dict[str, Any]] = {"MaskCreate": {"inimask_threshold": 0.02}, "PostProcess": {}}
# What RELION isn't told: only our measurements use it, or its program draws nothing at random or has no threads
APART = {("MaskCreate", "molecular_weight"), ("MaskCreate", "random_seed"), ("PostProcess", "threads")}


def another(declared: JobType, name: str, params: Any) -> Any:
    """The same parameters but for one, which has a valid value that isn't its default."""
    before, annotation = getattr(params, name), declared.params.model_fields[name].annotation
    choices = (not before,) if annotation is bool else ("cpu", "C2", "word", *get_args(annotation), 0.9, 2, 20, 200, 6)
    for value in choices:
        with suppress(ValidationError):
            changed = declared.params(**{**params.model_dump(), name: value})
            if getattr(changed, name) != before:
                return changed
    raise AssertionError(f"no other value for {name}: add one")


@pytest.mark.parametrize("name, parameter", [(name, parameter) for name in PROGRAMS for parameter in job_type(name).params.model_fields])
def test_no_parameter_is_dropped(name: str, parameter: str) -> None:
    """Another value of it changes RELION's command or is refused by name; all else that has no part in the command is listed here."""
    declared = job_type(name)
    params = declared.params(**NEEDED.get(name, {"mask_diameter": 150.0}))
    changed = another(declared, parameter, params)

    def said(params: Any) -> list[list[str]]:
        return sorted(split_options(arguments(declared, params, {}, Path("J"), threads=params.threads)))

    try:
        dropped = said(changed) == said(params)
    except InputError as error:
        assert error.where == "--" + parameter.replace("_", "-") and "cannot be given to RELION" in error.problem
        dropped = False
    assert dropped == ((name, parameter) in APART)


@pytest.mark.relion
def test_a_folder_with_the_groups_name_hides_the_group_from_relion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELION takes it for a list of operators and goes on without any: a map without its symmetry, and not a word."""
    monkeypatch.chdir(tmp_path)
    words = ["relion_refine", "--print_symmetry_ops", "--sym", "D2", "--i", "a", "--o", "b"]

    def operators() -> int:
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        found = re.search(r"following (\d+) transformation", said)
        assert found, said
        return int(found[1])

    assert operators() == 4
    Path("D2").mkdir()
    assert operators() == 1
    with pytest.raises(InputError, match=r"--symmetry: RELION reads what is called D2 here"):
        command("Refine3D", {"mask_diameter": 100.0, "symmetry": "D2"}, {})


@pytest.mark.parametrize("name", sorted(set(MODULES) - set(PROGRAMS)))
def test_types_without_a_program(name: str) -> None:
    with pytest.raises(InputError, match=rf"no program for {name}\. It carries out Class2D, InitialModel, .*PostProcess"):
        program_of(name)


def test_further_options() -> None:
    """They replace what RELION's windows always give, and may not contradict the job."""
    class2d, particles = {"mask_diameter": 150.0}, {"particles": PARTICLES}
    words = command("Class2D", class2d, particles, "--pool 3 --maxsig 500")
    assert words.count("--pool") == 1 and value_of(words, "--pool") == "3" and value_of(words, "--maxsig") == "500"
    for text, match in (("--iter 3", "--iter is set by the job"), ("--j 4", "--j is set"), ("500", "no option"), ('--x "', "quot")):
        with pytest.raises(InputError, match=match):
            command("Class2D", class2d, particles, text)


def test_the_command_that_goes_on() -> None:
    refine3d, said = program_of("Refine3D"), command("Refine3D", {"mask_diameter": 150.0}, {"particles": PARTICLES, "reference": MAP})
    optimiser = Path("J/run_it003_optimiser.star")
    words = "--continue J/run_it003_optimiser.star --o J/run --auto_iter_max 40 --j 2 --pool 30 --dont_combine_weights_via_disc"
    assert sorted(going_on(refine3d, optimiser, Path("J"), said)) == sorted([*words.split(), "--pipeline_control", "J/"])
    last = going_on(refine3d, optimiser, Path("J"), said, finish=True)
    assert "--force_converge" in last and "--auto_iter_max" not in last
    class2d = command("Class2D", {"mask_diameter": 150.0}, {"particles": PARTICLES})
    assert value_of(going_on(program_of("Class2D"), optimiser, Path("J"), class2d), "--iter") == "25"


def test_ranks_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "usable_cores", lambda: 16)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert install.check_ranks(program_of("Refine3D"), None) == 3
    assert install.check_ranks(program_of("Class2D"), None) == 1
    assert [install.threads_of_each(ranks, 0) for ranks in (1, 3, 5, 40)] == [16, 8, 4, 1]
    assert install.threads_of_each(3, 2) == 2
    for name, ranks, match in (("Refine3D", 2, "too few"), ("MaskCreate", 3, "no MPI")):
        with pytest.raises(InputError, match=match):
            install.check_ranks(program_of(name), ranks)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "mpirun" else f"/bin/{name}")
    with pytest.raises(InputError, match="mpirun is not on the PATH"):
        install.check_ranks(program_of("Refine3D"), 3)


def test_the_launcher_is_the_sites_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELION_MPIRUN", "srun --mpi=pmix")
    assert install.launch(program_of("Class3D"), 5, leashed=False) == ["srun", "--mpi=pmix", "-n", "5", "relion_refine_mpi"]


def test_no_relion_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    declared = job_type("Class2D")
    with pytest.raises(InputError, match=r"relion_refine is not on the PATH\. Install RELION"):
        by_relion(declared, declared.params(mask_diameter=150), {"particles": PARTICLES})
