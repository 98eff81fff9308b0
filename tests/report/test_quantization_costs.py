"""The report's costs of quantisation, on numbers that can be checked by hand."""

from __future__ import annotations

from typing import Any

import pytest
from report import tables

from cleanai_ray.analysis.cells import gather
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.report.blocks import Paragraph
from cleanai_ray.report.sections.quantization import quantization_blocks, quantization_costs
from cleanai_ray.storage import schemas

FLOAT = {"size_bytes_float": 1000, "size_bytes": 1000, "latency_backend": "eager", "accuracy": 0.90}
INT8 = {"size_bytes_float": 1000, "size_bytes": 300, "latency_backend": "onnxruntime", "quantization": "int8"}


def row(number: int, **columns: Any) -> dict[str, Any]:
    common = {
        "trial_id": f"trial-{number}",
        "status": schemas.OK,
        "method": "wanda",
        "ratio": 0.3,
        "mode": "local",
        "steps": 1,
        "seed": 0,
        "accuracy_dense": 0.95,
        "accuracy_pruned": 0.5,
        "latency_ms_b1_p50_dense": 3.0,
        "latency_ms_b1_p50": 2.0,
    }
    return {**common, **columns}


def frames(*rows: dict[str, Any]) -> StudyFrames:
    return StudyFrames(results=tables.frame(list(rows), schemas.RESULTS), **tables.empty_tables())


STUDY = frames(
    row(1, **FLOAT, accuracy_repaired=0.90),
    row(2, **INT8, accuracy_repaired=0.90, accuracy_quantized=0.89, accuracy=0.89),
    row(3, **INT8, accuracy_repaired=0.88, accuracy_finetuned=0.92, accuracy_quantized=0.89, accuracy=0.89, seed=1),
)


def test_each_quantised_trial_is_compared_with_its_last_stage_in_float() -> None:
    (cost,) = quantization_costs(STUDY)
    assert (cost.name, cost.num_trials, cost.backend) == ("int8", 2, "onnxruntime")
    # 0.90 -> 0.89, and 0.92 (fine-tuned, not repaired) -> 0.89.
    assert cost.mean_change == pytest.approx(-0.02)
    assert cost.worst_change == pytest.approx(-0.03)
    assert cost.size_share == pytest.approx(0.3)
    assert cost.speedup == pytest.approx(1.5)
    sentence = quantization_blocks([cost])[0]
    assert isinstance(sentence, Paragraph)
    assert sentence.text == (
        "int8 changes top-1 by \N{MINUS SIGN}2.00 points on average over 2 trials (worst: \N{MINUS SIGN}3.00 points) "
        "and leaves 30 % of the bytes."
    )


def test_without_quantisation_nothing_is_said() -> None:
    assert quantization_costs(frames(row(1, **FLOAT))) == ()


def test_methods_are_compared_within_one_quantisation() -> None:
    assert gather({"study": STUDY})["trial_id"].to_list() == ["trial-1"]
    only = frames(row(1, **INT8, accuracy=0.9), row(2, **INT8, accuracy=0.8, seed=1))
    assert only.base_quantization == "int8"
    assert len(gather({"study": only})) == 2


def test_what_was_asked_for_names_the_quantisation_and_sorts_it_last() -> None:
    trials = STUDY.trials.sort("amount_order")
    assert trials["amount"].unique(maintain_order=True).to_list() == ["ratio 0.3", "ratio 0.3, int8"]
