"""Names of RELION 3.1's job options (`rlnJobOptionVariable`) for our parameters, so that its window shows a job.star of ours."""

from __future__ import annotations

_ANY_JOB = {
    "threads": "nr_threads",
    "classes": "nr_classes",
    "iterations": "nr_iter",
    "mask_diameter": "particle_diameter",
    "symmetry": "sym_name",
    "tau2_fudge": "tau_fudge",
    "particles": "fn_img",
    "reference": "fn_ref",
    "mask": "fn_mask",
    "resolution_limit": "highres_limit",
}
_OF_JOB = {
    "Import": {"files": "fn_in_raw", "pixel_size": "angpix", "voltage": "kV", "spherical_aberration": "Cs", "amplitude_contrast": "Q0"},
    "MotionCorr": {"movies": "input_star_mics", "gain": "fn_gain_ref", "defects": "fn_defect"},
    "CtfFind": {"micrographs": "input_star_mics"},
    "AutoPick": {"micrographs": "fn_input_autopick"},
    "Extract": {"micrographs": "star_mics", "coordinates": "coords_suffix", "box_size": "extract_size", "particles": "fndata_reextract"},
    "Select": {"particles": "fn_data", "micrographs": "fn_mic", "model": "fn_model"},
    "MaskCreate": {"map": "fn_in"},
    "PostProcess": {"half1": "fn_in"},
}


def relion_option(job_type: str, name: str) -> str:
    """RELION's variable for parameter or input `name` of a job type; our own name where it has none, which RELION leaves alone."""
    return _OF_JOB.get(job_type, {}).get(name) or _ANY_JOB.get(name, name)
