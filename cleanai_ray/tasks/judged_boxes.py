"""The distribution by which a detector is compared with another one: of classes, and of boxes where there is something.

What judges classifiers by the softmax of their outputs judges detectors by both, since boxes are written as
distributions, too. With the probability p of something at a place of the dense model, and boxes b and c of the dense
and the other model in units of `SPREAD`, the KL divergence at the place is the mean of

    KL(classes)   and   KL(something or nothing) + p * (mean over four numbers of (b - c)^2) / 2
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cleanai_ray.tasks.detector_heads import Head

SPREAD = 0.1
"""The standard deviation of the normal distribution around a number of a box, in sizes of what it is predicted from;
the bins are as wide."""

REACH = 0.8
"""The bins go from -0.8 to 0.8: a place that a box lies farther from is hardly ever the one that predicts it."""

_MOST_PLACES = 2048
"""Places of a head that are judged, evenly spread: of more, a batch would fill the memory."""

_NEVER = -1e4
"""The logit of what cannot be."""


def judged(heads: Sequence[Head]) -> Tensor:
    """Return logits [N, outcomes, 2 * places] whose softmax is the distribution of classes or boxes at each place."""
    parts = []
    for logits, boxes in heads:
        places = logits.shape[2]
        if places > _MOST_PLACES:
            chosen = torch.linspace(0, places - 1, _MOST_PLACES, device=logits.device).round().long()
            logits, boxes = logits.index_select(2, chosen), boxes.index_select(2, chosen)
        parts += [logits, box_logits(logits, boxes)]
    most = max(part.shape[1] for part in parts)
    filled = [functional.pad(part.flatten(2), (0, 0, 0, most - part.shape[1]), value=_NEVER) for part in parts]
    return torch.cat(filled, 2)


def box_logits(logits: Tensor, boxes: Tensor) -> Tensor:
    """Return the logarithms of the probabilities of nothing, or of a bin of one of the four numbers, drawn evenly.

    Args:
        logits: [N, 1 + classes, places, ...], those of nothing first.
        boxes: [N, 4, places, ...].

    Returns:
        [N, 1 + 4 * bins, places, ...].
    """
    classes = logits.log_softmax(1)
    something = classes[:, 1:].logsumexp(1, keepdim=True)
    bins = torch.arange(-REACH, REACH + SPREAD / 2, SPREAD, device=boxes.device, dtype=boxes.dtype)
    centres = bins.reshape(-1, *[1] * (boxes.dim() - 2))
    spread = (-0.5 * ((boxes[:, :, None] - centres) / SPREAD).square()).log_softmax(2)
    found = something[:, :, None] + spread - math.log(4)
    return torch.cat([classes[:, :1], found.flatten(1, 2)], 1)
