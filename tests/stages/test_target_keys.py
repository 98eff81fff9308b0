"""The target among everything that results depend on."""

from __future__ import annotations

from typing import Any

from cleanai_ray.config.study import parse_study
from cleanai_ray.stages.fingerprints import dense_key, trial_key
from tests.small_study import SMALL

TARGET = {"backend": "torch", "layout": "channels_last", "batch_size": 2}


def study(sweep: dict[str, Any], target: dict[str, Any] | None = TARGET) -> Any:
    document = {**SMALL, "sweep": {"methods": ["magnitude"], **sweep}}
    document["evaluation"] = {**SMALL["evaluation"], "target": target}
    return parse_study(document)


def test_the_target_decides_a_latency_budget_and_nothing_of_the_dense_model() -> None:
    timed, other = study({"budgets": [{"latency": 0.6}]}), study({"ratios": [0.3]})
    for found in (timed, other):
        assert dense_key(found) == dense_key(found.model_copy(update={"evaluation": evaluation(found, None)}))
    larger = {**TARGET, "batch_size": 4}
    for found, is_same in ((timed, False), (other, True)):
        changed = found.model_copy(update={"evaluation": evaluation(found, larger)})
        assert (trial_key(found, found.trials()[0], "d") == trial_key(changed, found.trials()[0], "d")) == is_same


def evaluation(found: Any, target: dict[str, Any] | None) -> Any:
    return type(found.evaluation).model_validate({**found.evaluation.model_dump(), "target": target})
