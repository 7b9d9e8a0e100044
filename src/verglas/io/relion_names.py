"""RELION's labels beside Verglas's column names. Nothing above `io` knows an `rln` label.

Units are RELION's own and are kept: Å, degrees, kV, mm (Cs), mrad (beam tilt), pixels for coordinates.
A label that is not listed is carried through unchanged, under its own name.
"""

PARTICLE_COLUMNS = {
    "rlnCoordinateX": "coordinate_x",
    "rlnCoordinateY": "coordinate_y",
    "rlnAutopickFigureOfMerit": "pick_score",
    "rlnImageName": "image_name",
    "rlnMicrographName": "micrograph_name",
    "rlnOpticsGroup": "optics_group",
    "rlnDefocusU": "defocus_u",
    "rlnDefocusV": "defocus_v",
    "rlnDefocusAngle": "defocus_angle",
    "rlnPhaseShift": "phase_shift",
    "rlnCtfBfactor": "ctf_bfactor",
    "rlnCtfScalefactor": "ctf_scale",
    "rlnCtfMaxResolution": "ctf_max_resolution",
    "rlnCtfFigureOfMerit": "ctf_figure_of_merit",
    "rlnGroupNumber": "group_number",
    "rlnGroupName": "group_name",
    "rlnAngleRot": "rot",
    "rlnAngleTilt": "tilt",
    "rlnAnglePsi": "psi",
    "rlnAngleRotPrior": "rot_prior",
    "rlnAngleTiltPrior": "tilt_prior",
    "rlnAnglePsiPrior": "psi_prior",
    "rlnOriginXAngst": "origin_x",
    "rlnOriginYAngst": "origin_y",
    "rlnClassNumber": "class_number",
    "rlnNormCorrection": "norm_correction",
    "rlnRandomSubset": "half",
    "rlnLogLikeliContribution": "log_likelihood",
    "rlnMaxValueProbDistribution": "max_probability",
    "rlnNrOfSignificantSamples": "significant_samples",
}

OPTICS_COLUMNS = {
    "rlnOpticsGroupName": "name",
    "rlnOpticsGroup": "optics_group",
    "rlnMicrographOriginalPixelSize": "movie_pixel_size",
    "rlnMicrographPixelSize": "micrograph_pixel_size",
    "rlnImagePixelSize": "pixel_size",
    "rlnImageSize": "box_size",
    "rlnImageDimensionality": "dimensionality",
    "rlnVoltage": "voltage",
    "rlnSphericalAberration": "spherical_aberration",
    "rlnAmplitudeContrast": "amplitude_contrast",
    "rlnMtfFileName": "mtf_file",
    "rlnBeamTiltX": "beam_tilt_x",
    "rlnBeamTiltY": "beam_tilt_y",
    "rlnOddZernike": "odd_zernike",
    "rlnEvenZernike": "even_zernike",
    "rlnMagMat00": "mag_00",
    "rlnMagMat01": "mag_01",
    "rlnMagMat10": "mag_10",
    "rlnMagMat11": "mag_11",
}

MICROGRAPH_COLUMNS = {
    "rlnMicrographMovieName": "movie_name",
    "rlnMicrographName": "micrograph_name",
    "rlnMicrographNameNoDW": "micrograph_name_no_dose_weighting",
    "rlnMicrographMetadata": "motion_file",
    "rlnCtfPowerSpectrum": "power_spectrum",
    "rlnCtfImage": "ctf_image",
    "rlnOpticsGroup": "optics_group",
    "rlnAccumMotionTotal": "motion_total",
    "rlnAccumMotionEarly": "motion_early",
    "rlnAccumMotionLate": "motion_late",
    "rlnDefocusU": "defocus_u",
    "rlnDefocusV": "defocus_v",
    "rlnCtfAstigmatism": "astigmatism",
    "rlnDefocusAngle": "defocus_angle",
    "rlnPhaseShift": "phase_shift",
    "rlnCtfFigureOfMerit": "ctf_figure_of_merit",
    "rlnCtfMaxResolution": "ctf_max_resolution",
}

TEXT_COLUMNS = frozenset(
    {
        "image_name",
        "micrograph_name",
        "movie_name",
        "micrograph_name_no_dose_weighting",
        "motion_file",
        "power_spectrum",
        "ctf_image",
        "group_name",
        "name",
        "mtf_file",
        "odd_zernike",
        "even_zernike",
    }
)

INTEGER_COLUMNS = frozenset({"optics_group", "group_number", "class_number", "half", "significant_samples", "box_size", "dimensionality"})
