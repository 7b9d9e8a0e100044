"""Our jobs in the words of RELION 3.1's windows, so that it shows a job of ours with its settings, and can repeat it.

`job.star` holds RELION's variables (`rlnJobOptionVariable`) where it has one for a parameter, with its value: several windows
choose by a text (`15 degrees`), show the oversampled step, or ask first whether an option is meant at all. What RELION has no
variable for stands there under our own name, which it leaves alone with a warning. Nothing is left to guess: a name of ours that
RELION would take for another quantity is written with `verglas_` before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_ANY_JOB = {
    "classes": "nr_classes",
    "iterations": "nr_iter",
    "mask_diameter": "particle_diameter",
    "symmetry": "sym_name",
    "tau2_fudge": "tau_fudge",
    "particles": "fn_img",
    "reference": "fn_ref",
    "mask": "fn_mask",
    "absolute_greyscale": "ref_correct_greyscale",
    "solvent_correct_fsc": "do_solvent_fsc",
    "sgd_ini_subset": "sgd_ini_subset_size",
    "sgd_fin_subset": "sgd_fin_subset_size",
    "write_every": "sgd_write_iter",
    "ranks": "nr_mpi",
    "relion_args": "other_args",
}
_OF_JOB = {
    "Import": {
        "pixel_size": "angpix",
        "voltage": "kV",
        "spherical_aberration": "Cs",
        "amplitude_contrast": "Q0",
        "beam_tilt_x": "beamtilt_x",
        "beam_tilt_y": "beamtilt_y",
        "mtf_file": "fn_mtf",
    },
    "MotionCorr": {
        "movies": "input_star_mics",
        "gain": "fn_gain_ref",
        "defects": "fn_defect",
        "dose_weighting": "do_dose_weighting",
        "save_noDW": "do_save_noDW",
    },
    "CtfFind": {"micrographs": "input_star_mics"},
    "AutoPick": {
        "micrographs": "fn_input_autopick",
        "references": "fn_refs_autopick",
        "reference": "fn_ref3d_autopick",
        "log_adjust_threshold": "log_adjust_thr",
        "symmetry": "ref3d_symmetry",
        "psi_sampling": "psi_sampling_autopick",
        "use_ctf": "do_ctf_autopick",
        "invert": "do_invert_refs",
        "threshold": "threshold_autopick",
        "max_stddev_noise": "maxstddevnoise_autopick",
        "min_avg_noise": "minavgnoise_autopick",
    },
    "Extract": {
        "micrographs": "star_mics",
        "coordinates": "coords_suffix",
        "box_size": "extract_size",
        "particles": "fndata_reextract",
        "reset_offsets": "do_reset_offsets",
    },
    "Select": {"particles": "fn_data", "micrographs": "fn_mic", "model": "fn_model"},
    "MaskCreate": {"map": "fn_in"},
    "PostProcess": {"half1": "fn_in"},
}
# Å with us, pixels in RELION's window
_OTHER_MEANING = {"InitialModel": ("offset_range", "offset_step")}

_SAMPLINGS = ("30", "15", "7.5", "3.7", "1.8", "0.9", "0.5", "0.2", "0.1")  # degrees, in steps of the HEALPix order
_ROTATIONS = ("No rotation (0)", "90 degrees (1)", "180 degrees (2)", "270 degrees (3)")
_FLIPS = ("No flipping (0)", "Flip upside down (1)", "Flip left to right (2)")
_IMPORTED = {
    "coordinates": "Particle coordinates (*.box, *_pick.star)",
    "particles": "Particles STAR file (.star)",
    "reference": "3D reference (.mrc)",
    "mask": "3D mask (.mrc)",
}


def relion_options(job_type: str, given: Mapping[str, Any]) -> dict[str, str]:
    """Variables and values of `job.star` for a job's parameters and inputs (by our names); what is None is left out."""
    names = _ANY_JOB | _OF_JOB.get(job_type, {}) | {name: f"verglas_{name}" for name in _OTHER_MEANING.get(job_type, ())}
    found = {names.get(name, name): value for name, value in given.items()}
    if given.get("threads"):
        found["nr_threads"] = found.pop("threads")
    if job_type in _IN_ITS_WORDS:
        found |= _IN_ITS_WORDS[job_type](given)
    return {name: _text(value) for name, value in found.items() if value is not None}


def _text(value: Any) -> str:
    """Yes and No, lists by commas."""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def _sampling(order: int) -> str | None:
    """The window's angle for HEALPix order `order` (after oversampling, for refinements); None where it has none."""
    return f"{_SAMPLINGS[order]} degrees" if 0 <= order < len(_SAMPLINGS) else None


def _import(given: Mapping[str, Any]) -> dict[str, Any]:
    kind = given["kind"]
    raw, other = kind in ("movies", "micrographs"), kind in _IMPORTED
    return {
        "do_raw": raw,
        "is_multiframe": kind == "movies",
        "fn_in_raw": given["files"] if raw else None,
        "do_other": other,
        "fn_in_other": given["files"] if other else None,
        "node_type": _IMPORTED.get(kind),
    }


def _motioncorr(given: Mapping[str, Any]) -> dict[str, Any]:
    frames = given["grouping_for_ps"]
    return {
        "do_own_motioncor": True,
        "gain_rot": _ROTATIONS[given["gain_rot"]],
        "gain_flip": _FLIPS[given["gain_flip"]],
        "do_save_ps": frames != 0,
        "group_for_ps": 4 if frames < 0 else frames * given["dose_per_frame"] or None,
    }


def _ctffind(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_ctffind4": True, "use_gctf": False, "dast": given["dast"] or None}


def _autopick(given: Mapping[str, Any]) -> dict[str, Any]:
    diameter = given["particle_diameter"]
    return {
        "do_log": given.get("references") is None and given.get("reference") is None,
        "do_ref3d": given.get("reference") is not None,
        "ref3d_sampling": _sampling(given["healpix_order"] - 1),
        "particle_diameter": diameter or -1,
        "mindist_autopick": given["min_distance"] or diameter / 2 or None,
        "log_maxres": given["lowpass"],
        "log_invert": not given["invert"],
    }


def _extract(given: Mapping[str, Any]) -> dict[str, Any]:
    again = given.get("particles") is not None
    return {
        "do_rescale": given["rescale"] > 0,
        "rescale": given["rescale"] or None,
        "do_reextract": again,
        "do_recenter": again and given["recenter"],
    }


def _class2d(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "psi_sampling": given["psi_step"] / 2,
        "offset_step": given["offset_step"] / 2,
        "highres_limit": given["limit_resolution"] or -1,
        "dont_skip_align": not given["skip_align"],
    }


def _initialmodel(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"nr_iter": None, "verglas_iterations": given["iterations"]}


def _class3d(given: Mapping[str, Any]) -> dict[str, Any]:
    width = given["local_search_sigma"]
    return {
        "sampling": _sampling(given["healpix_order"]),
        "offset_step": given["offset_step"] / 2,
        "highres_limit": given["limit_resolution"] or -1,
        "dont_skip_align": not given["skip_align"],
        "do_local_ang_searches": width is not None,
        "sigma_angles": None if width is None else 3 * width,
        "do_pad1": given["pad"] == 1,
    }


def _refine3d(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "sampling": _sampling(given["healpix_order"]),
        "auto_local_sampling": _sampling(given["local_search_order"]),
        "offset_step": given["offset_step"] / 2,
        "do_pad1": given["pad"] == 1,
    }


def _select(given: Mapping[str, Any]) -> dict[str, Any]:
    from verglas.io.relion_names import MICROGRAPH_COLUMNS, PARTICLE_COLUMNS

    action, label = given["action"], given["select_label"]
    labels = {name: relion for relion, name in (MICROGRAPH_COLUMNS | PARTICLE_COLUMNS).items()}
    by_class = given.get("model") is not None
    return {
        "fn_data": None if by_class else given.get("particles"),  # RELION finds them beside the model
        "do_select_values": action == "values",
        "select_label": labels.get(label, label),
        "do_split": action == "split",
        "split_size": -1,  # RELION would also cut the parts to 100 rows
        "do_remove_duplicates": action == "duplicates",
    }


def _joinstar(given: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"particles": "part", "micrographs": "mic", "movies": "mov"}
    mine = kinds[given["kind"]]
    files = {f"fn_{mine}{number}": path for number, path in enumerate(given["files"], 1)}
    return {f"do_{kind}": kind == mine for kind in kinds.values()} | files


def _maskcreate(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"lowpass_filter": given["lowpass_filter"] or -1}


def _postprocess(given: Mapping[str, Any]) -> dict[str, Any]:
    adhoc = given["adhoc_bfac"] is not None
    return {
        "angpix": given["angpix"] or -1,
        "do_auto_bfac": given["do_auto_bfac"] and not adhoc,
        "do_adhoc_bfac": adhoc,
        "low_pass": -1 if given["low_pass"] is None else given["low_pass"],
    }


_IN_ITS_WORDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "Import": _import,
    "MotionCorr": _motioncorr,
    "CtfFind": _ctffind,
    "AutoPick": _autopick,
    "Extract": _extract,
    "Class2D": _class2d,
    "InitialModel": _initialmodel,
    "Class3D": _class3d,
    "Refine3D": _refine3d,
    "Select": _select,
    "JoinStar": _joinstar,
    "MaskCreate": _maskcreate,
    "PostProcess": _postprocess,
}
