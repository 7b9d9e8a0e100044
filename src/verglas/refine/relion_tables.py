"""The engine's state as RELION's tables: `model`, `optimiser`, `sampling` and the columns of `data` (RELION.md §5, §6).

RELION divides transforms by the number of pixels, so its spectra are ours over N⁴; they have N/2 + 1 shells, of which ours lack the last.
The log-likelihoods are what is gained over empty images, without RELION's constant terms of the noise; in an iteration that compares
by cross-correlation, the correlations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from verglas.particles import ParticleSet
from verglas.refine.iteration import SHELLS_AHEAD
from verglas.refine.maximisation import MAX_SSNR
from verglas.refine.model import Model
from verglas.refine.observations import MASK_EDGE_PX, Layout
from verglas.refine.relion_directions import places_of, relion_angles, relion_directions
from verglas.refine.settings import Settings
from verglas.refine.state import State
from verglas.volume.sampling import angular_step

NO_RESOLUTION = 999.0
_LIKELY = 0.2  # FSC at the limit from which RELION calls it high


def particle_columns(state: State, seen: Layout) -> dict[str, np.ndarray]:
    """What the engine found for each particle, under Verglas's column names."""
    own = state.assignments
    angles, origins = own.angles().cpu().numpy(), own.origins.cpu().double().numpy()
    columns = {
        "group_number": seen.scale_group.numpy() + 1,
        "rot": angles[:, 0],
        "tilt": angles[:, 1],
        "psi": angles[:, 2],
        "origin_x": origins[:, 0],
        "origin_y": origins[:, 1],
        "class_number": own.classes.cpu().numpy() + 1,
        "norm_correction": own.norm.cpu().double().numpy(),
        "log_likelihood": own.log_likelihood.cpu().double().numpy(),
        "max_probability": own.max_probability.cpu().double().numpy(),
        "significant_samples": own.significant.cpu().numpy(),
    }
    if len(state.models) > 1:
        columns["half"] = own.half.cpu().numpy() + 1
    return columns


def with_results(particles: ParticleSet, state: State, seen: Layout) -> ParticleSet:
    """The particles with what the engine found; columns of theirs that it rewrote stand where RELION puts them, after the others."""
    columns = particle_columns(state, seen)
    return particles.with_columns(**dict.fromkeys(columns)).with_columns(**columns)


def model_tables(
    state: State,
    model: Model,
    weight: torch.Tensor,
    resolutions: list[float],
    images: list[str],
    seen: Layout,
    settings: Settings,
    half: int | None = None,
) -> dict[str, Any]:
    """Tables of a `model.star`: `weight` [classes, shells] of the maps, `resolutions` (Å) and file names of the references.

    half: 0 or 1, whose particles the model is of; None for all.
    """
    tables: dict[str, Any] = {"model_general": _general(state, model, resolutions, seen, settings)}
    tables["model_classes"] = pd.DataFrame(
        {
            "rlnReferenceImage": images,
            "rlnClassDistribution": model.class_weight.cpu().numpy(),
            "rlnAccuracyRotations": state.progress.accuracy_rotation,
            "rlnAccuracyTranslationsAngst": state.progress.accuracy_offset,
            "rlnEstimatedResolution": resolutions,
            "rlnOverallFourierCompleteness": [_completeness(each) for each in weight],
            **({"rlnClassPriorOffsetX": 0.0, "rlnClassPriorOffsetY": 0.0} if model.dims == 2 else {}),
        }
    )
    for number in range(model.classes):
        tables[f"model_class_{number + 1}"] = _class_table(state, model, weight, number, seen)
    tables["model_groups"] = _groups(state, seen)
    tables |= _noise_tables(model, seen)
    if model.dims == 3:
        for number in range(model.classes):
            density = orientation_density(state, model, number, settings, half)
            tables[f"model_pdf_orient_class_{number + 1}"] = pd.DataFrame({"rlnOrientationDistribution": density})
    return tables


def _general(state: State, model: Model, resolutions: list[float], seen: Layout, settings: Settings) -> dict[str, Any]:
    sigma = state.sampling.local_sigma or 0.0
    return {
        "rlnReferenceDimensionality": model.dims,
        "rlnDataDimensionality": 2,
        "rlnOriginalImageSize": seen.box,
        "rlnCurrentResolution": min(resolutions),
        "rlnCurrentImageSize": min(seen.box, 2 * (state.progress.resolution_shell + SHELLS_AHEAD)),
        "rlnPaddingFactor": float(settings.padding),
        "rlnIsHelix": 0,
        "rlnFourierSpaceInterpolator": 1,
        "rlnMinRadiusNnInterpolation": 10,
        "rlnPixelSize": seen.pixel_size,
        "rlnNrClasses": model.classes,
        "rlnNrBodies": 1,
        "rlnNrGroups": len(seen.micrographs),
        "rlnTau2FudgeFactor": settings.tau2_fudge,
        "rlnNormCorrectionAverage": float(state.assignments.norm.mean()),
        "rlnSigmaOffsetsAngst": model.offset_sigma,
        "rlnOrientationalPriorMode": 1 if sigma else 0,
        "rlnSigmaPriorRotAngle": sigma,
        "rlnSigmaPriorTiltAngle": sigma,
        "rlnSigmaPriorPsiAngle": sigma,
        "rlnLogLikelihood": float(state.assignments.log_likelihood.double().sum()),
        "rlnAveragePmax": float(state.assignments.max_probability.double().mean()),
    }


def _class_table(state: State, model: Model, weight: torch.Tensor, number: int, seen: Layout) -> pd.DataFrame:
    scale = float(seen.box) ** 4
    weights = _to_nyquist(weight[number], seen)
    return pd.DataFrame(
        {
            **_shells(seen, angstrom=True),
            "rlnSsnrMap": _to_nyquist(model.ssnr[number], seen).clip(max=MAX_SSNR),
            "rlnGoldStandardFsc": _to_nyquist(state.fsc, seen),
            "rlnFourierCompleteness": (weights > 0).astype(float),
            "rlnReferenceSigma2": np.where(weights > 0, 1 / np.maximum(weights, 1e-30), 0.0) / scale,
            "rlnReferenceTau2": _to_nyquist(model.tau2[number], seen) / scale,
            "rlnSpectralOrientabilityContribution": 0.0,
        }
    )


def _shells(seen: Layout, *, angstrom: bool = False) -> dict[str, np.ndarray]:
    """Index, 1/Å and Å of RELION's shells, 0 to N/2."""
    shells, extent = np.arange(seen.box // 2 + 1), seen.box * seen.pixel_size
    columns = {"rlnSpectralIndex": shells, "rlnResolution": shells / extent}
    if angstrom:
        columns["rlnAngstromResolution"] = np.where(shells > 0, extent / np.maximum(shells, 1), NO_RESOLUTION)
    return columns


def _to_nyquist(values: torch.Tensor, seen: Layout, *, edge: bool = False) -> np.ndarray:
    """A spectrum with RELION's N/2 + 1 shells: what is missing at the end is 0, or with `edge` the last value."""
    more = seen.box // 2 + 1 - len(values)
    array = values.cpu().double().numpy()
    return np.pad(array, (0, more), mode="edge") if edge else np.pad(array, (0, more))


def _groups(state: State, seen: Layout) -> pd.DataFrame:
    number = np.arange(1, len(seen.micrographs) + 1)
    counts = np.bincount(seen.scale_group.numpy(), minlength=len(number))
    scale = state.assignments.scale.cpu().double().numpy()
    names = {"rlnGroupNumber": number, "rlnGroupName": seen.micrographs}
    return pd.DataFrame({**names, "rlnGroupNrParticles": counts, "rlnGroupScaleCorrection": scale})


def _noise_tables(model: Model, seen: Layout) -> dict[str, pd.DataFrame]:
    """One noise spectrum a group (micrograph): that of the optics group most of its particles belong to."""
    spectra = [_to_nyquist(sigma2, seen, edge=True) / float(seen.box) ** 4 for sigma2 in model.sigma2.cpu()]
    tables = [pd.DataFrame({**_shells(seen), "rlnSigma2Noise": noise}) for noise in spectra]
    pairs = seen.scale_group.numpy() * len(tables) + seen.noise_group.numpy()
    counts = np.bincount(pairs, minlength=len(seen.micrographs) * len(tables)).reshape(-1, len(tables))
    return {f"model_group_{number}": tables[group] for number, group in enumerate(counts.argmax(1), start=1)}


def sampling_tables(state: State, settings: Settings, seen: Layout) -> dict[str, Any]:
    """Tables of a `sampling.star`: the grid that the next iteration searches, or searched last where poses are fitted since."""
    sampling, space = state.sampling, settings.dims == 3
    psi_step = angular_step(sampling.order) if space else sampling.psi_step
    offset_range, offset_step = sampling.offset_range * seen.pixel_size, sampling.offset_step * seen.pixel_size
    grid = {"rlnHealpixOrder": sampling.order, "rlnSymmetryGroup": settings.symmetry, "rlnTiltAngleLimit": -91.0}
    general = {
        "rlnIs3DSampling": int(space),
        "rlnIs3DTranslationalSampling": 0,
        **(grid if space else {}),
        "rlnPsiStep": psi_step,
        "rlnOffsetRange": offset_range,
        "rlnOffsetStep": offset_step,
        "rlnHelicalOffsetStep": -1.0,
        "rlnSamplingPerturbInstance": 0.0,
        "rlnSamplingPerturbFactor": 0.5,
        "rlnHealpixOrderOriginal": settings.healpix_order,
        "rlnPsiStepOriginal": angular_step(settings.healpix_order) if space else settings.psi_step,
        "rlnOffsetRangeOriginal": settings.offset_range_px * seen.pixel_size,
        "rlnOffsetStepOriginal": settings.offset_step_px * seen.pixel_size,
    }
    if not space:
        return {"sampling_general": general}
    rot, tilt = relion_angles(sampling.order, relion_directions(sampling.order, settings.symmetry))
    directions = pd.DataFrame({"rlnAngleRot": rot.numpy(), "rlnAngleTilt": tilt.numpy()})
    return {"sampling_general": general, "sampling_directions": directions}


def optimiser_table(
    state: State, settings: Settings, seen: Layout, root: str, models: list[str], names: dict[str, str], mask: str | None = None
) -> dict[str, Any]:
    """The `optimiser_general` table: where the other files are (`mask`: the solvent mask's), and every setting that RELION reads."""
    progress = state.progress
    halves = len(models) > 1
    stars = {f"rlnModelStarFile{i + 1}" if halves and i else "rlnModelStarFile": name for i, name in enumerate(models)}
    return {
        "rlnOutputRootName": root,
        **stars,
        **names,
        "rlnCurrentIteration": state.iteration,
        "rlnNumberOfIterations": settings.iterations,
        "rlnDoSplitRandomHalves": int(halves),
        "rlnJoinHalvesUntilThisResolution": settings.low_resol_join if halves else -1.0,
        "rlnAdaptiveOversampleOrder": 1 if settings.align else 0,
        "rlnAdaptiveOversampleFraction": 0.999,
        "rlnRandomSeed": settings.seed,
        "rlnParticleDiameter": settings.mask_diameter,
        "rlnWidthMaskEdge": round(MASK_EDGE_PX),
        "rlnDoZeroMask": 1,
        "rlnDoSolventFlattening": 1,
        "rlnDoSolventFscCorrection": int(settings.solvent_correct_fsc),
        "rlnSolventMaskName": mask or "None",
        "rlnHighresLimitExpectation": settings.limit_resolution or -1.0,
        "rlnIncrementImageSize": SHELLS_AHEAD,
        "rlnDoAutoRefine": int(halves),
        "rlnAutoLocalSearchesHealpixOrder": settings.local_order,
        "rlnNumberOfIterWithoutResolutionGain": progress.without_gain,
        "rlnBestResolutionThusFar": max(progress.best_shell, progress.resolution_shell) / (seen.box * seen.pixel_size),
        "rlnNumberOfIterWithoutChangingAssignments": progress.without_changes,
        "rlnDoSkipAlign": int(not settings.align),
        "rlnOverallAccuracyRotations": progress.accuracy_rotation,
        "rlnOverallAccuracyTranslationsAngst": progress.accuracy_offset,
        "rlnChangesOptimalOrientations": progress.rotation_change,
        "rlnChangesOptimalOffsets": progress.offset_change,
        "rlnChangesOptimalClasses": progress.class_change,
        "rlnSmallestChangesOrientations": progress.smallest_rotation,
        "rlnSmallestChangesOffsets": progress.smallest_offset,
        "rlnSmallestChangesClasses": round(progress.class_change * len(seen.scale_group)),
        "rlnHasConverged": int(progress.fine_enough),
        "rlnHasHighFscAtResolLimit": int(progress.fsc_at_limit > _LIKELY),
        "rlnDoCorrectNorm": int(settings.correct_norm),
        "rlnDoCorrectScale": int(settings.correct_scale),
        "rlnDoCorrectCtf": int(settings.correct_ctf),
        "rlnDoIgnoreCtfUntilFirstPeak": int(settings.ctf_intact_first_peak),
        "rlnFixSigmaNoiseEstimates": int(settings.fix_noise),
        **_NOT_OURS,
    }


# what RELION asks for, and this engine has no use for: the values of a run that does not use it either
_NOT_OURS = {
    **dict.fromkeys(("rlnSolventMask2Name", "rlnBodyStarFile", "rlnTauSpectrumName", "rlnLocalSymmetryFile", "rlnFourierMask"), "None"),
    "rlnMaximumCoarseImageSize": -1,
    "rlnLowresLimitExpectation": -1.0,
    "rlnDoMapEstimation": 1,
    "rlnDoFastSubsetOptimisation": 0,
    "rlnDoExternalReconstruct": 0,
    "rlnDoStochasticGradientDescent": 0,
    "rlnDoStochasticEM": 0,
    "rlnSgdInitialIterations": 50,
    "rlnSgdFinalIterations": 50,
    "rlnSgdInBetweenIterations": 200,
    "rlnSgdInitialResolution": 35.0,
    "rlnSgdFinalResolution": 15.0,
    "rlnSgdInitialSubsetSize": 100,
    "rlnSgdFinalSubsetSize": 500,
    "rlnSgdMuFactor": 0.0,
    "rlnSgdSigma2FudgeInitial": 8.0,
    "rlnSgdSigma2FudgeHalflife": -1,
    "rlnSgdSkipAnneal": 0,
    "rlnSgdSubsetSize": -1,
    "rlnSgdWriteEverySubset": 1,
    "rlnSgdStepsize": 0.5,
    "rlnDoSkipRotate": 0,
    "rlnDoHelicalRefine": 0,
    "rlnIgnoreHelicalSymmetry": 0,
    "rlnHelicalTwistInitial": 0.0,
    "rlnHelicalRiseInitial": 0.0,
    "rlnHelicalCentralProportion": 0.3,
    "rlnNrHelicalNStart": 1,
    "rlnHelicalMaskTubeInnerDiameter": -1.0,
    "rlnHelicalMaskTubeOuterDiameter": -1.0,
    "rlnHelicalSymmetryLocalRefinement": 0,
    "rlnHelicalSigmaDistance": -1.0,
    "rlnHelicalKeepTiltPriorFixed": 0,
    "rlnHasLargeSizeIncreaseIterationsAgo": 0,
    "rlnCtfDataArePhaseFlipped": 0,
    "rlnDoOnlyFlipCtfPhases": 0,
    "rlnRefsAreCtfCorrected": 1,
    "rlnFixSigmaOffsetEstimates": 0,
    "rlnMaxNumberOfPooledParticles": 30,
}


def orientation_density(state: State, model: Model, number: int, settings: Settings, half: int | None = None) -> np.ndarray:
    """Shares of a class's particles (of one half) in each of RELION's directions [directions], together the share of the class."""
    order, symmetry = state.sampling.order, settings.symmetry
    own = state.assignments.matrices[state.assignments.of_class(number, half)].cpu()
    counts = torch.bincount(places_of(own, order, symmetry), minlength=len(relion_directions(order, symmetry))).double()
    return (float(model.class_weight[number]) * counts / counts.sum().clamp(min=1)).numpy()


def _completeness(weight: torch.Tensor) -> float:
    return float((weight[1:] > 0).double().mean())
