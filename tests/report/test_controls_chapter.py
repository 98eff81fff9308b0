"""The chapter on controls: the pruned model that stands beside each, and what is said of the difference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from report.tables import frame
from report.with_images import study_with_images

from cleanai_ray.analysis.controls import beside_controls
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts.controls import controls as chart_of
from cleanai_ray.report.sections.base import ReportContent
from cleanai_ray.report.sections.controls import Controls
from cleanai_ray.storage import schemas

N = 400
DECIDES = np.arange(N) < N // 2
DENSE = np.arange(N) % 10 != 0


def right(first: int, second: int) -> Any:
    """The first so many of the images that decide, and of those that are reported on."""
    return np.concatenate([np.arange(N // 2) < first, np.arange(N // 2) < second])


def study() -> StudyFrames:
    """Two pruned models at ratio 0.3, one of them better only where nothing is decided; one at 0.5; three controls."""
    trials: list[dict[str, Any]] = [
        {"method": "magnitude", "ratio": 0.3},
        {"method": "taylor", "ratio": 0.3},
        {"method": "magnitude", "ratio": 0.5, "macs": 25},
        {"method": "narrow", "ratio": 0.3, "control": "narrow"},
        {"method": "torch_pruning", "ratio": 0.5, "control": "torch_pruning", "macs": 25},
        {
            "method": "dense_finetuned",
            "requested_budget": "macs=1",
            "ratio": None,
            "control": "dense_finetuned",
            "macs": 100,
        },
    ]
    hits = [right(160, 150), right(150, 180), right(140, 140), right(199, 190), right(199, 100), right(199, 150)]
    found = study_with_images(trials, hits, DENSE, DECIDES)
    is_control = pl.col("control").is_not_null()
    return replace(found, results=found.results.filter(~is_control), control_results=found.results.filter(is_control))


def test_beside_a_control_stands_what_was_best_on_the_images_that_decide() -> None:
    found = {each.control["control"]: each for each in beside_controls(study())}
    narrow, peer, dense = (found[kind] for kind in ("narrow", "torch_pruning", "dense_finetuned"))
    assert narrow.pruned is not None
    assert (narrow.pruned["trial_id"], narrow.pruned["accuracy"], narrow.accuracy) == ("magnitude-0", 0.75, 0.95)
    assert narrow.difference is not None
    assert (narrow.difference.lost, narrow.difference.gained, narrow.difference.num_images) == (40, 0, 200)
    assert peer.pruned is not None
    assert peer.pruned["trial_id"] == "magnitude-2"
    assert peer.difference is not None
    assert peer.difference.effect == 20.0
    assert dense.pruned is not None
    assert dense.pruned["trial_id"] == study().best["trial_id"]  # type: ignore[index]


def test_the_chapter_says_how_many_controls_are_ahead() -> None:
    chapter = Controls().write(ReportContent(study(), None, {}))  # type: ignore[arg-type]
    assert chapter is not None
    verdict = chapter.blocks[0]
    # Narrow is ahead by 40 images, torch-pruning behind by as many; beside dense, no image differs.
    assert "more accurate than 1 and less accurate than 1; 1 cannot be told apart" in verdict.text  # type: ignore[union-attr]
    assert "narrow" in verdict.text  # type: ignore[union-attr]
    assert "20.00 points" in verdict.text  # type: ignore[union-attr]
    assert chart_of(study()) is not None


def test_without_controls_there_is_neither_chapter_nor_chart() -> None:
    none = replace(study(), control_results=frame([], schemas.RESULTS))
    assert Controls().write(ReportContent(none, None, {})) is None  # type: ignore[arg-type]
    assert chart_of(none) is None
