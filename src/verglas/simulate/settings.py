"""What a simulation is made of, as one validated model; `TIERS` are the sizes that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SimulationSettings(BaseModel):
    """Every number of a simulation. The default is the tiny tier, at the reference microscope (200 kV, Cs 2.7 mm)."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    seed: int = Field(1, ge=0, description="Seed of everything random")
    movies: int = Field(12, ge=1, description="Number of movies")
    width: int = Field(1536, ge=256, description="Pixels along x")
    height: int = Field(1536, ge=256, description="Pixels along y")
    pixel_size: float = Field(1.4, gt=0.2, le=5, description="Å")
    frames: int = Field(20, ge=2, description="Frames a movie")
    dose_per_frame: float = Field(2.0, gt=0, description="e⁻/Å²")
    movie_format: Literal["tif", "mrc", "eer"] = Field("tif", description="TIFF with LZW, MRC, or EER")

    model: Path | None = Field(None, description="PDB or mmCIF file of the specimen; without one, the aldolase stand-in")
    assembly: str | None = Field(None, description="Biological assembly of the model")
    symmetry: str = Field("D2", description="Symmetry of the model; its axes are turned into RELION's setting")
    particles_per_movie: int = Field(80, ge=1, description="Particles a movie, on average")
    min_distance: float = Field(150.0, gt=0, description="Least distance between particles, Å")
    preferred_orientation: float = Field(
        0.0, ge=0, description="0 uniform; larger values gather the views about one direction (von Mises κ)"
    )
    second_state: float = Field(0.0, ge=0, lt=1, description="Share of particles whose outer parts are turned: class 2")

    voltage: float = Field(200.0, gt=50, description="kV")
    spherical_aberration: float = Field(2.7, ge=0, description="mm")
    amplitude_contrast: float = Field(0.1, ge=0, lt=1, description="Fraction")
    defocus_min: float = Field(8000.0, gt=0, description="Å of underfocus")
    defocus_max: float = Field(22000.0, gt=0, description="Å of underfocus")
    astigmatism: float = Field(300.0, ge=0, description="Largest difference of the two defoci, Å")
    envelope_bfactor: float = Field(30.0, ge=0, description="Å², of the microscope; the atoms have their own")
    beam_tilt_x: float = Field(0.0, description="mrad, first optics group; further groups have it turned")
    beam_tilt_y: float = Field(0.0, description="mrad")
    trefoil: float = Field(0.0, description="Phase at 1/3 Å, rad")
    fourth_order: float = Field(0.0, description="Phase at 1/3 Å beyond that of Cs, rad")
    optics_groups: int = Field(1, ge=1, description="Groups, in turn over the movies")

    ice_thickness: float = Field(250.0, gt=0, description="Å")
    ice_diffusion: float = Field(0.33, ge=0, description="Mean square movement of the water along an axis, Å² per e⁻/Å²")
    stage_tilt: float = Field(1.0, ge=0, lt=60, description="Largest tilt of the ice, degrees")
    drift: float = Field(20.0, ge=0, description="Whole-field drift over the movie, Å (each movie within a quarter of it)")
    local_motion: float = Field(4.0, ge=0, description="Largest local movement over the movie, Å")
    particle_motion: float = Field(0.4, ge=0, description="Own movement of each particle over the movie, Å")
    damage: bool = Field(True, description="Loss of high frequencies with dose")

    detection: float = Field(0.8, gt=0, le=1, description="Share of the electrons that are counted: DQE at zero frequency")
    mtf_nyquist: float = Field(0.6, gt=0, le=1, description="MTF at the Nyquist frequency")
    gain_spread: float = Field(0.06, ge=0, lt=0.3, description="Standard deviation of the gain reference")
    hot_pixels: int = Field(30, ge=0, description="Pixels that count too much, not marked in the gain")
    dead_pixels: int = Field(30, ge=0, description="Pixels that count nothing; their gain is 0")
    contaminated: float = Field(0.25, ge=0, le=1, description="Share of movies with ice crystals on them")
    aggregated: float = Field(0.25, ge=0, le=1, description="Share of movies with clumps of particles")
    carbon: float = Field(0.17, ge=0, le=1, description="Share of movies that show the edge of the carbon film")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.defocus_min > self.defocus_max:
            raise ValueError(f"defocus_min {self.defocus_min:g} is above defocus_max {self.defocus_max:g}")
        if self.model is None and (self.symmetry.upper() != "D2" or self.assembly is not None):
            raise ValueError("symmetry and assembly belong to a model file; the stand-in is D2")
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.height, self.width

    @property
    def total_dose(self) -> float:
        """e⁻/Å² over the movie."""
        return self.frames * self.dose_per_frame

    def movie_name(self, index: int) -> str:
        """Name of movie `index` (from 0), relative to the simulation's folder."""
        return f"movies/mic_{index + 1:04d}.{self.movie_format}"


TIERS: dict[str, SimulationSettings] = {
    "tiny": SimulationSettings(),
    "small": SimulationSettings(
        movies=120, width=3072, height=3072, pixel_size=1.1, frames=32, dose_per_frame=1.25, particles_per_movie=220
    ),
}
