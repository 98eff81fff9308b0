from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cleanai_ray.config.evaluation import EvaluationSection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.registry import TARGETS


def test_a_target_is_contiguous_float32_at_batch_1_by_default() -> None:
    target = TargetSection(backend="onnxruntime")
    assert target.label == "onnxruntime float32, batch 1, 1 thread"
    other = TargetSection(backend="cuda_graph", dtype="float16", layout="channels_last", batch_size=64, threads=2)
    assert other.label == "cuda_graph float16 channels_last, batch 64, 2 threads"


def test_a_study_without_a_target_has_none() -> None:
    assert EvaluationSection().target is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"backend": "torch", "dtype": "int8"}, "dtype is int8.*allowed with backend torch: float32, bfloat16, float1"),
        ({"backend": "onnxruntime", "dtype": "float16"}, "allowed with backend onnxruntime: float32, int8"),
        ({"backend": "tensorrt", "dtype": "bfloat16"}, "allowed with backend tensorrt: float32, float16"),
        ({"backend": "onnxruntime", "layout": "channels_last"}, "layout is channels_last.*allowed.*: contiguous"),
        ({"backend": "eager"}, "'torch', 'torch_compile', 'cuda_graph'"),
        ({"backend": "torch", "batch_size": 0}, "greater than 0"),
        ({"backend": "torch", "threads": 0}, "greater than 0"),
        ({}, "Field required"),
    ],
)
def test_what_is_no_target_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TargetSection.model_validate(fields)


def test_a_target_needs_to_know_how_often_to_time() -> None:
    with pytest.raises(ValidationError, match=r"evaluation\.latency is null, but evaluation\.target is torch; needed"):
        EvaluationSection.model_validate({"latency": None, "target": {"backend": "torch"}})


def test_every_back_end_that_a_study_can_name_is_registered() -> None:
    named = TargetSection.model_json_schema()["properties"]["backend"]["enum"]
    assert sorted(named) == list(TARGETS.names())
