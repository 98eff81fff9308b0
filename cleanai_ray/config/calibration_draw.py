"""One draw of the calibration samples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class CalibrationDraw:
    """How many calibration samples are drawn, and with which seed. Of one seed, the fewer are the first of the more.

    Attributes:
        samples: Number of images.
        seed: Seed of the draw.
    """

    samples: int
    seed: int

    @property
    def name(self) -> str:
        """The draw in a file's name: `n128-draw0`."""
        return f"n{self.samples}-draw{self.seed}"
