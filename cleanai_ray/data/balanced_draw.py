"""A draw of samples of which each class has as many as every other."""

from __future__ import annotations

import numpy as np


def balanced_draw(candidates: np.ndarray, classes: np.ndarray | None, number: int, seed: list[int]) -> np.ndarray:
    """Return some of the candidates, int64 [number], ascending; the same arguments give the same ones.

    Classes have equally many, or one more, for as long as each has candidates left. A smaller number is part of a
    larger one.

    Args:
        candidates: Indices of samples, int64 [N].
        classes: The class of each candidate, int64 [N]; None: whichever come.
        number: How many to draw, at most N.
        seed: Seed of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(candidates))
    if classes is not None:
        shuffled = classes[order]
        by_class = np.argsort(shuffled, kind="stable")
        firsts = np.searchsorted(shuffled[by_class], shuffled[by_class])
        turns = np.empty(len(order), dtype=np.int64)
        turns[by_class] = np.arange(len(order)) - firsts  # the first of every class, then the second of every class
        order = order[np.argsort(turns, kind="stable")]
    return np.sort(candidates[order[:number]]).astype(np.int64)
