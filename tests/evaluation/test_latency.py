from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.deploy.bfloat16 import Bfloat16Model
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation import rounds, target_latency
from cleanai_ray.evaluation.latency import measure_latency
from cleanai_ray.evaluation.machine import cpu_name
from cleanai_ray.storage import schemas


class Noting(nn.Module):
    """Writes down every call: which model, what it was given and under which conditions."""

    def __init__(self, name: str, calls: list[Any]) -> None:
        super().__init__()
        self.name, self.calls = name, calls
        self.layer = nn.Conv2d(1, 2, 3)

    def __deepcopy__(self, memo: Any) -> Noting:
        return Noting(self.name, self.calls)

    def forward(self, images: Tensor) -> Tensor:
        conditions = (self.training, torch.is_inference_mode_enabled(), torch.get_num_threads())
        self.calls.append((self.name, len(images), *conditions))
        return self.layer(images)


def measure(calls: list[Any], **fields: Any) -> list[dict[str, Any]]:
    models = {name: Noting(name, calls).train() for name in ("dense", "pruned")}
    section = LatencySection.model_validate({"batch_sizes": (1, 4), "warmup": 2, "runs": 5, "threads": 1, **fields})
    rows = measure_latency(models, torch.randn(1, 1, 8, 8), section, device="cpu")
    assert all(module.training for model in models.values() for module in model.modules())
    return rows


def test_rows_are_those_of_the_latency_table() -> None:
    rows = measure([])
    assert [(row["variant"], row["batch_size"]) for row in rows] == [
        ("dense", 1),
        ("pruned", 1),
        ("dense", 4),
        ("pruned", 4),
    ]
    for row in rows:
        assert set(row) == set(schemas.LATENCY.names) - {"trial_id"}
        assert 0 < row["latency_ms_p50"] <= row["latency_ms_p90"] <= row["latency_ms_p99"]
        # Images per second at the median: the latency itself is never divided by the batch.
        assert row["throughput"] == pytest.approx(row["batch_size"] / (row["latency_ms_p50"] / 1000))
        assert (row["num_runs"], row["num_warmup"], row["num_threads"], row["device"]) == (5, 2, 1, "cpu")
        assert (row["backend"], row["device_name"]) == ("eager", cpu_name())
        ends = [row[name] for name in ("speedup_low", "speedup", "speedup_high")]
        assert ends == [None] * 3 if row["variant"] == "dense" else 0 < ends[0] <= ends[1] <= ends[2]
    assert schemas.to_table([{"trial_id": "t", **row} for row in rows], schemas.LATENCY).num_rows == 4


def test_models_take_turns_in_an_order_that_turns_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_MILLISECONDS_THAT_HIDE_A_COLD_CACHE", math.inf)  # however busy the machine is
    calls: list[Any] = []
    measure(calls, batch_sizes=(1,))
    names = [name for name, *_ in calls]
    # 2 + 5 rounds of two passes each, of which the second counts, and a pass of each for its memory.
    order = ["dense", "pruned", "pruned", "dense"] * 3 + ["dense", "pruned"]
    assert names == [name for name in order for _ in range(2)] + ["dense", "pruned"]


def test_timed_in_evaluation_and_inference_mode_with_the_asked_threads_and_batches() -> None:
    calls: list[Any] = []
    before = torch.get_num_threads()
    measure(calls, threads=2)
    assert {tuple(call[1:]) for call in calls} == {(1, False, True, 2), (4, False, True, 2)}
    assert torch.get_num_threads() == before


def test_models_can_be_trained_afterwards() -> None:
    model = nn.Linear(2, 2)
    measure_latency({"dense": model}, torch.randn(3, 2), LatencySection.model_validate({"runs": 5}))
    model(torch.randn(1, 2)).sum().backward()
    assert model.weight.grad is not None


def test_a_hook_on_any_model_is_refused() -> None:
    hooked = nn.Sequential(nn.Linear(2, 2))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(EvaluationError, match="hook"):
        measure_latency({"dense": nn.Linear(2, 2), "pruned": hooked}, torch.randn(1, 2), LatencySection())


def test_a_model_in_bfloat16_is_timed_in_bfloat16() -> None:
    seen: list[torch.dtype] = []

    class Seeing(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.dtype)
            return super().forward(images)

    section = LatencySection.model_validate({"batch_sizes": (1,), "runs": 5})
    measure_latency({"pruned": Bfloat16Model(Seeing(2, 2))}, torch.randn(1, 2), section)
    assert set(seen) == {torch.bfloat16}


def test_token_numbers_stay_integers() -> None:
    section = LatencySection.model_validate({"batch_sizes": (3,), "runs": 5})
    (row,) = measure_latency({"dense": nn.Embedding(5, 2)}, torch.tensor([[1, 4]]), section)
    assert row["latency_ms_p50"] > 0


def test_no_models_are_refused() -> None:
    with pytest.raises(EvaluationError, match="0 models"):
        measure_latency({}, torch.randn(1, 2), LatencySection())


def test_threads_and_modes_are_restored_after_an_error() -> None:
    model = nn.Linear(2, 2).train()
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        measure_latency({"dense": model}, torch.randn(1, 3), LatencySection.model_validate({"threads": 2}))
    assert (torch.get_num_threads(), model.training) == (before, True)


def test_the_speed_up_is_the_median_of_each_round_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round is slower than the one before; in each, pruned takes half as long, but for one that is disturbed."""
    times = {"dense": [2, 4, 6, 8, 10, 12, 14], "pruned": [1, 2, 3, 80, 5, 6, 7]}
    monkeypatch.setattr(target_latency, "take_turns", lambda timers, **_: {name: times[name] for name in timers})
    model = nn.Linear(2, 2)
    section = LatencySection.model_validate({"batch_sizes": (1,)})
    dense, pruned = measure_latency({"dense": model, "pruned": model}, torch.randn(1, 2), section)
    assert dense["speedup"] is None
    assert (pruned["speedup"], pruned["speedup_high"]) == pytest.approx((2.0, 2.0))
    # Of seven draws with one value in seven at a tenth, at least four have to be it to be the median: 1 % of resamples.
    assert pruned["speedup_low"] == 2.0
    alone = measure_latency({"pruned": model}, torch.randn(1, 2), section)
    assert alone[0]["speedup"] is None
