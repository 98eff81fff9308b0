"""One draw of the calibration samples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class CalibrationDraw:
    """A number of calibration samples, and the seed they are drawn with.

    A smaller draw with the same seed holds the first samples of a larger one.

    Attributes:
        samples: Number of images.
        seed: Seed of the draw.
    """

    samples: int
    seed: int

    @property
    def name(self) -> str:
        """The draw as it appears in the names of files: `n128-draw0`."""
        return f"n{self.samples}-draw{self.seed}"
