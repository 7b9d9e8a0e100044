"""The engine's state as RELION's tables: `model`, `optimiser`, `sampling` and the columns of `data` (RELION.md §5, §6).

RELION divides transforms by the number of pixels, so its spectra are ours over N⁴.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from verglas.particles import ParticleSet
from verglas.refine.maximisation import MAX_SSNR
from verglas.refine.model import Model
from verglas.refine.observations import Observations
from verglas.refine.settings import Settings
from verglas.refine.state import State
from verglas.volume.sampling import healpix_directions

NO_RESOLUTION = 999.0


def particle_columns(state: State, seen: Observations) -> dict[str, np.ndarray]:
    """What the engine found for each particle, under Verglas's column names."""
    own = state.assignments
    angles, origins = own.angles().cpu().numpy(), own.origins.cpu().double().numpy()
    columns = {
        "group_number": seen.scale_group.cpu().numpy() + 1,
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


def with_results(particles: ParticleSet, state: State, seen: Observations) -> ParticleSet:
    """The particles with what the engine found; columns of theirs that it rewrote stand where RELION puts them, after the others."""
    columns = particle_columns(state, seen)
    return particles.with_columns(**dict.fromkeys(columns)).with_columns(**columns)


def model_tables(
    state: State, model: Model, weight: torch.Tensor, resolutions: list[float], images: list[str], seen: Observations, settings: Settings
) -> dict[str, Any]:
    """Tables of a `model.star`: `weight` [classes, shells] of the maps, `resolutions` (Å) and file names of the references."""
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
            density = orientation_density(state, number, settings)
            tables[f"model_pdf_orient_class_{number + 1}"] = pd.DataFrame({"rlnOrientationDistribution": density})
    return tables


def _general(state: State, model: Model, resolutions: list[float], seen: Observations, settings: Settings) -> dict[str, Any]:
    sigma = state.sampling.local_sigma or 0.0
    return {
        "rlnReferenceDimensionality": model.dims,
        "rlnDataDimensionality": 2,
        "rlnOriginalImageSize": seen.box,
        "rlnCurrentResolution": min(resolutions),
        "rlnCurrentImageSize": min(seen.box, 2 * (state.progress.resolution_shell + 10)),
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


def _class_table(state: State, model: Model, weight: torch.Tensor, number: int, seen: Observations) -> pd.DataFrame:
    shells = np.arange(seen.shells)
    extent, scale = seen.box * seen.pixel_size, float(seen.box) ** 4
    weights = weight[number].cpu().numpy()
    return pd.DataFrame(
        {
            "rlnSpectralIndex": shells,
            "rlnResolution": shells / extent,
            "rlnAngstromResolution": np.where(shells > 0, extent / np.maximum(shells, 1), NO_RESOLUTION),
            "rlnSsnrMap": model.ssnr[number].cpu().numpy().clip(max=MAX_SSNR),
            "rlnGoldStandardFsc": state.fsc.cpu().numpy(),
            "rlnFourierCompleteness": (weights > 0).astype(float),
            "rlnReferenceSigma2": np.where(weights > 0, 1 / np.maximum(weights, 1e-30), 0.0) / scale,
            "rlnReferenceTau2": model.tau2[number].cpu().numpy() / scale,
            "rlnSpectralOrientabilityContribution": 0.0,
        }
    )


def _groups(state: State, seen: Observations) -> pd.DataFrame:
    number = np.arange(1, len(seen.micrographs) + 1)
    counts = np.bincount(seen.scale_group.cpu().numpy(), minlength=len(number))
    scale = state.assignments.scale.cpu().double().numpy()
    names = {"rlnGroupNumber": number, "rlnGroupName": seen.micrographs}
    return pd.DataFrame({**names, "rlnGroupNrParticles": counts, "rlnGroupScaleCorrection": scale})


def _noise_tables(model: Model, seen: Observations) -> dict[str, pd.DataFrame]:
    """One noise spectrum a group (micrograph): that of the optics group most of its particles belong to."""
    shells = np.arange(seen.shells)
    scale_group, noise_group = seen.scale_group.cpu().numpy(), seen.noise_group.cpu().numpy()
    noise = model.sigma2.cpu().numpy() / float(seen.box) ** 4
    tables = {}
    for number in range(len(seen.micrographs)):
        group = np.bincount(noise_group[scale_group == number]).argmax()
        columns = {"rlnSpectralIndex": shells, "rlnResolution": shells / (seen.box * seen.pixel_size), "rlnSigma2Noise": noise[group]}
        tables[f"model_group_{number + 1}"] = pd.DataFrame(columns)
    return tables


def sampling_tables(state: State, settings: Settings, seen: Observations) -> dict[str, Any]:
    """Tables of a `sampling.star`: the grid that the next iteration searches."""
    sampling, space = state.sampling, settings.dims == 3
    general = {
        "rlnIs3DSampling": int(space),
        "rlnIs3DTranslationalSampling": 0,
        "rlnHealpixOrder": sampling.order if space else 0,
        "rlnSymmetryGroup": settings.symmetry if space else "C1",
        "rlnTiltAngleLimit": -91.0,
        "rlnPsiStep": 60.0 / 2**sampling.order if space else sampling.psi_step,
        "rlnOffsetRange": sampling.offset_range * seen.pixel_size,
        "rlnOffsetStep": sampling.offset_step * seen.pixel_size,
        "rlnSamplingPerturbInstance": 0.0,
        "rlnSamplingPerturbFactor": 0.5,
    }
    rot, tilt = healpix_directions(sampling.order) if space else (torch.zeros(1), torch.zeros(1))
    directions = pd.DataFrame({"rlnAngleRot": rot.numpy(), "rlnAngleTilt": tilt.numpy()})
    return {"sampling_general": general, "sampling_directions": directions}


def optimiser_table(state: State, settings: Settings, root: str, models: list[str], names: dict[str, str]) -> dict[str, Any]:
    """The `optimiser_general` table: where the other files are, and every setting."""
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
        "rlnAdaptiveOversampleOrder": 1,
        "rlnAdaptiveOversampleFraction": 0.999,
        "rlnRandomSeed": settings.seed,
        "rlnParticleDiameter": settings.mask_diameter,
        "rlnWidthMaskEdge": 5,
        "rlnDoZeroMask": 1,
        "rlnDoSolventFlattening": 1,
        "rlnDoSolventFscCorrection": int(settings.solvent_correct_fsc),
        "rlnHighresLimitExpectation": settings.limit_resolution or -1.0,
        "rlnDoCorrectNorm": int(settings.correct_norm),
        "rlnDoCorrectScale": int(settings.correct_scale),
        "rlnDoSkipAlign": int(not settings.align),
        "rlnDoAutoRefine": int(halves),
        "rlnAutoLocalSearchesHealpixOrder": settings.local_order,
        "rlnNumberOfIterWithoutResolutionGain": progress.without_gain,
        "rlnNumberOfIterWithoutChangingAssignments": progress.without_changes,
        "rlnHasConverged": int(progress.converged),
        "rlnHasHighFscAtResolLimit": int(progress.fsc_at_limit > 0.2),
        "rlnChangesOptimalOrientations": progress.rotation_change,
        "rlnChangesOptimalOffsets": progress.offset_change,
        "rlnChangesOptimalClasses": progress.class_change,
    }


def orientation_density(state: State, number: int, settings: Settings) -> np.ndarray:
    """Share of the class's particles in each direction of the grid [directions], as RELION's `rlnOrientationDistribution`."""
    from verglas.volume.sampling import healpix_pixels

    angles = state.assignments.angles()[state.assignments.classes == number].cpu()
    order = state.sampling.order
    counts = torch.bincount(healpix_pixels(order, angles[:, 0], angles[:, 1]), minlength=12 * 4**order).double()
    return (counts / counts.sum().clamp(min=1)).numpy()


def _completeness(weight: torch.Tensor) -> float:
    return float((weight[1:] > 0).double().mean())
