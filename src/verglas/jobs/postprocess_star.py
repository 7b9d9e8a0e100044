"""postprocess.star as RELION writes it, and a table `verglas` with what RELION has no label for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from verglas.volume.postprocess import PostProcessed


def write_postprocess(
    path: Path, result: PostProcessed, pixel_size: float, names: Sequence[str | Path], mtf: str | None, model: torch.Tensor | None
) -> None:
    """Write the tables general, fsc, guinier and verglas. `names`: half map 1, half map 2, mask; `model`: FSC against a model [shells]."""
    import pandas as pd

    from verglas.io.star import write_star

    curves, guinier, size = result.curves, result.guinier, result.map.shape[-1]
    general: dict[str, Any] = {
        "rlnFinalResolution": curves.resolution,
        "rlnBfactorUsedForSharpening": result.bfactor,
        "rlnUnfilteredMapHalf1": names[0],
        "rlnUnfilteredMapHalf2": names[1],
        "rlnParticleBoxFractionSolventMask": result.relion_fraction,
        "rlnMaskName": names[2],
        "rlnRandomiseFrom": size * pixel_size / curves.randomised_from,
    }
    if guinier.slope:
        general["rlnFittedSlopeGuinierPlot"] = guinier.slope
        general["rlnFittedInterceptGuinierPlot"] = guinier.intercept
        general["rlnCorrelationFitGuinierPlot"] = abs(guinier.correlation)
    if mtf:
        general["rlnMtfFileName"] = mtf
    guinier_table = {
        "rlnResolutionSquared": guinier.squared.numpy(),
        "rlnLogAmplitudesOriginal": guinier.original.numpy(),
        "rlnLogAmplitudesWeighted": guinier.weighted.numpy(),
        "rlnLogAmplitudesSharpened": guinier.sharpened.numpy(),
        "rlnLogAmplitudesIntercept": guinier.intercept,
    }
    own: dict[str, Any] = {
        "verglasMaskShareOfBox": result.mask_share,
        "verglasFinalShell": curves.shell,
        "verglasLowPass": result.lowpass,
        "verglasPixelSize": pixel_size,
    }
    fsc_table = _fsc_table(result, pixel_size, model)
    pairs = [
        {label: f"{value:.6f}" if isinstance(value, float) else str(value) for label, value in table.items()} for table in (general, own)
    ]
    write_star(path, {"general": pairs[0], "fsc": pd.DataFrame(fsc_table), "guinier": pd.DataFrame(guinier_table), "verglas": pairs[1]})


def _fsc_table(result: PostProcessed, pixel_size: float, model: torch.Tensor | None) -> dict[str, Any]:
    import numpy as np

    curves, size = result.curves, result.map.shape[-1]
    shells = np.arange(len(curves.masked))
    frequency = shells / (size * pixel_size)
    table: dict[str, Any] = {
        "rlnSpectralIndex": shells,
        "rlnResolution": np.where(shells == 0, 0.001001, frequency),
        "rlnAngstromResolution": np.where(shells == 0, 999.0, 1 / np.maximum(frequency, 1e-9)),
        "rlnFourierShellCorrelationCorrected": curves.corrected.numpy(),
        "rlnFourierShellCorrelationParticleMaskFraction": curves.particle.numpy(),
        "rlnFourierShellCorrelationUnmaskedMaps": curves.unmasked.numpy(),
        "rlnFourierShellCorrelationMaskedMaps": curves.masked.numpy(),
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": curves.randomised.numpy(),
    }
    if model is not None:
        table["verglasFourierShellCorrelationModel"] = model.numpy()
    return table


def read_postprocess(path: Path) -> dict[str, float]:
    """The figures of a postprocess.star of ours: Å, Å², shares, shells."""
    import numpy as np

    from verglas.io.star import list_table, numbers, read_star
    from verglas.volume.fsc import corrected_at

    blocks = read_star(path)
    pairs = {label: str(value) for table in ("general", "verglas") for label, value in dict(blocks[table]).items()}
    curves = list_table(blocks, "fsc", path)
    shell, size = int(pairs["verglasFinalShell"]), 2 * (len(curves) - 1)
    random = numbers(curves, "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps", path)
    randomised_from = float(pairs["rlnRandomiseFrom"])
    first = round(size * float(pairs["verglasPixelSize"]) / randomised_from)
    found = {
        "resolution": float(pairs["rlnFinalResolution"]),
        "shell": shell,
        "bfactor": float(pairs["rlnBfactorUsedForSharpening"]),
        "mask_share": float(pairs["verglasMaskShareOfBox"]),
        "randomised_from": randomised_from,
        "random_fsc_at_resolution": float(random[shell]) if corrected_at(shell, first) else 0.0,
    }
    if "verglasFourierShellCorrelationModel" in curves:
        under = np.flatnonzero(numbers(curves, "verglasFourierShellCorrelationModel", path)[1:] < 0.5)
        last = int(under[0]) if len(under) else len(curves) - 1
        found["model_resolution"] = size * float(pairs["verglasPixelSize"]) / last if last else float("inf")
    return found
