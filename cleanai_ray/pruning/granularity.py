"""The granularity of widths: the multiples that narrowed groups are cut to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cleanai_ray.config.sections import LEAST_STEPS, USUAL_MULTIPLE, PruningSection


@dataclass(frozen=True, kw_only=True)
class Granularity:
    """Multiples that widths are cut to.

    Attributes:
        multiple: Widths are multiples of this.
        least_steps: A group that is not as wide as this many steps goes by half the multiple, or a quarter, and so on,
            so that no amount is out of reach of a small network; 0: every group goes by the multiple, and narrower ones
            keep their width.
    """

    multiple: int
    least_steps: int = 0

    def step(self, num_channels: int, num_blocks: int) -> int:
        """Return the channels from one width of a group to the next.

        Args:
            num_channels: Channels of the group in the dense model.
            num_blocks: Its equal blocks, of which each loses as many.
        """
        multiple = self.multiple
        while multiple > 1 and num_channels < self.least_steps * math.lcm(multiple, num_blocks):
            multiple //= 2
        return math.lcm(multiple, num_blocks)


AUTOMATIC = Granularity(multiple=USUAL_MULTIPLE, least_steps=LEAST_STEPS)
"""The granularity of `round_to: auto` where no target was measured."""


def granularity_of(
    bounds: PruningSection, quantization: str = "none", multiple: int | None = None
) -> Granularity | None:
    """Return the granularity that a study's bounds ask for; None if widths are not rounded.

    Args:
        bounds: The bounds.
        quantization: How the model will be quantised.
        multiple: The multiple that the target likes; None: the usual one.
    """
    if bounds.round_to is None:
        return None
    resolved = bounds.resolved(quantization, multiple).round_to
    return Granularity(multiple=int(resolved or 1), least_steps=LEAST_STEPS if bounds.round_to == "auto" else 0)


def granularity_for_time(
    bounds: PruningSection, quantization: str = "none", multiple: int | None = None
) -> Granularity:
    """Return the granularity in which time is spent: the one of the bounds, or the automatic one if they have none."""
    found = granularity_of(bounds, quantization, multiple)
    return found or Granularity(multiple=multiple or USUAL_MULTIPLE, least_steps=LEAST_STEPS)
