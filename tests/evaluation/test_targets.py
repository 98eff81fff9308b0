"""The back ends of targets: each for real where it can run, each refused with one sentence where it cannot."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch import nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation import rounds
from cleanai_ray.evaluation.target_latency import compare_in_target, open_target, target_rows, time_in_target
from cleanai_ray.evaluation.targets import onnx_cpu
from cleanai_ray.registry import TARGETS
from cleanai_ray.storage import schemas

CUDA = torch.cuda.is_available()
SECTION = LatencySection.model_validate({"warmup": 1, "runs": 5})


def small_net(width: int = 4) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 4)).eval()


def target(backend: str, **fields: Any) -> TargetSection:
    return TargetSection.model_validate({"backend": backend, **fields})


def output(found: Any) -> torch.Tensor:
    return torch.as_tensor(found).float().cpu()


@pytest.mark.parametrize(
    ("fields", "tolerance"),
    [
        ({"backend": "torch"}, 1e-5),
        ({"backend": "torch", "layout": "channels_last"}, 1e-5),
        ({"backend": "torch", "dtype": "bfloat16"}, 0.05),
        pytest.param({"backend": "onnxruntime"}, 1e-4, marks=pytest.mark.slow),
        pytest.param({"backend": "onnxruntime", "dtype": "int8"}, 0.1, marks=pytest.mark.slow),
    ],
)
def test_a_prepared_run_computes_what_the_model_computes(fields: dict[str, Any], tolerance: float) -> None:
    model, batch = small_net(), torch.randn(3, 1, 8, 8)
    backend = open_target(TargetSection.model_validate(fields), "cpu")
    found = output(backend.prepare(model, batch)())
    with torch.no_grad():
        expected = model(batch)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("int8", 0.1)])
def test_a_quick_translation_computes_the_same(dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_cpu, "to_onnx", None)  # the slow exporter must not be needed
    model, batch = small_net(), torch.randn(3, 1, 8, 8)
    found = output(open_target(target("onnxruntime", dtype=dtype), "cpu", quick=True).prepare(model, batch)())
    with torch.no_grad():
        expected = model(batch)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_quick_comparison_on_one_thread_does_not_count_what_others_take() -> None:
    for quick, waits in ((False, True), (True, False)):
        opened = open_target(target("torch"), "cpu", quick=quick)
        assert (opened.milliseconds(lambda: time.sleep(0.05)) > 40) == waits
    assert open_target(target("torch", threads=2), "cpu", quick=True).milliseconds(lambda: time.sleep(0.05)) > 40


class Noting(nn.Module):
    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls, self.layer = calls, nn.Conv2d(3, 2, 3)

    def __deepcopy__(self, memo: Any) -> Noting:
        return Noting(self.calls)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weight = self.layer.weight
        last = images.is_contiguous(memory_format=torch.channels_last)
        conditions = (self.training, torch.is_inference_mode_enabled(), torch.get_num_threads())
        self.calls.append((len(images), images.dtype, weight.dtype, last, *conditions))
        return self.layer(images)


def test_models_run_in_the_type_layout_batch_and_threads_of_the_target_and_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds, "_MILLISECONDS_THAT_HIDE_A_COLD_CACHE", math.inf)  # however busy the machine is
    calls: list[Any] = []
    model = Noting(calls).train()
    before = torch.get_num_threads()
    asked = target("torch", dtype="bfloat16", layout="channels_last", batch_size=5, threads=2)
    time_in_target({"dense": model}, torch.randn(2, 3, 6, 6), asked, SECTION)
    assert set(calls) == {(5, torch.bfloat16, torch.bfloat16, True, False, True, 2)}
    assert len(calls) == 12  # of each round two, of which the second counts
    assert torch.get_num_threads() == before
    assert model.training
    assert model.layer.weight.dtype == torch.float32
    assert model.layer.weight.requires_grad


def test_rows_are_those_of_the_latency_table_and_agree_with_each_other() -> None:
    asked = target("torch", batch_size=2)
    times = time_in_target({"dense": small_net(8), "pruned": small_net(2)}, torch.randn(1, 1, 8, 8), asked, SECTION)
    dense, pruned = target_rows(times, asked, SECTION)
    assert set(dense) == set(pruned) == set(schemas.LATENCY.names) - {"trial_id"}
    assert (dense["variant"], pruned["variant"], dense["backend"]) == ("dense", "pruned", "torch")
    assert dense["target"] == "torch float32, batch 2, 1 thread"
    assert pruned["speedup"] == pytest.approx(dense["latency_ms_p50"] / pruned["latency_ms_p50"])
    assert dense["throughput"] == pytest.approx(2000 / dense["latency_ms_p50"])


def test_a_comparison_has_the_ratio_of_the_times_beside_it() -> None:
    found = compare_in_target(small_net(8), small_net(2), torch.randn(1, 1, 8, 8), target("torch"), SECTION)
    assert found["ratio"] == pytest.approx(found["latency_ms_p50"] / found["latency_ms_p50_dense"])
    assert found["device"] == "cpu, torch float32"


class Unexportable(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


@pytest.mark.slow
def test_a_model_that_a_target_cannot_run_is_named_with_the_target() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(EvaluationError, match=r"^evaluation\.target\.backend is onnxruntime: the pruned model: Unexp"):
        time_in_target({"pruned": Unexportable()}, torch.randn(1, 4), target("onnxruntime"), SECTION)


def test_hooks_and_nothing_to_time_are_refused() -> None:
    hooked = small_net()
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(EvaluationError, match="hook"):
        time_in_target({"dense": hooked}, torch.randn(1, 1, 8, 8), target("torch"), SECTION)
    with pytest.raises(EvaluationError, match="0 models"):
        time_in_target({}, torch.randn(1, 1, 8, 8), target("torch"), SECTION)


def test_what_needs_a_gpu_is_refused_on_a_cpu_with_what_is_allowed() -> None:
    with pytest.raises(EvaluationError, match=r"backend is cuda_graph: it needs a CUDA device.*allowed here: torch, "):
        open_target(target("cuda_graph"), "cpu")


WITHOUT = """
import sys
sys.modules[sys.argv[2]] = None  # what import finds where it is not installed
from cleanai_ray.config.target import TargetSection
from cleanai_ray.evaluation.target_latency import require_target_packages
try:
    require_target_packages(TargetSection(backend=sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("backend", "module", "install"),
    [("onnxruntime", "onnxruntime", "'cleanai-ray[onnx]'"), ("tensorrt", "tensorrt", "tensorrt")],
)
def test_a_missing_package_is_named_with_what_to_install(backend: str, module: str, install: str) -> None:
    pytest.importorskip("onnx")
    command = [sys.executable, "-c", WITHOUT, backend, module]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == (
        f"EvaluationError evaluation.target.backend is {backend}: it needs the package {module}, which is not "
        f"installed: pip install {install}"
    )


def test_an_onnxruntime_without_cuda_is_told_from_one_that_lacks() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has the CUDA provider here")
    with pytest.raises(EvaluationError, match=r"has no CUDAExecutionProvider \(it has .*CPUExecutionProvider"):
        open_target(target("onnxruntime_cuda"), "cuda:0")


def test_onnxruntime_on_the_cpu_is_timed_there_in_a_study_on_gpus() -> None:
    pytest.importorskip("onnxruntime")
    assert open_target(target("onnxruntime"), "cuda:0").device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="there is no CUDA device")
@pytest.mark.parametrize("backend", ["torch", "cuda_graph", "onnxruntime_cuda", "tensorrt"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_gpu_computes_what_the_model_computes(backend: str, dtype: str) -> None:
    try:
        TARGETS.get(backend).require_packages()
    except EvaluationError as error:
        pytest.skip(str(error))
    model, batch = small_net(), torch.randn(3, 1, 8, 8)
    opened = open_target(target(backend, dtype=dtype), "cuda:0")
    run = opened.prepare(model, batch)
    assert opened.milliseconds(run) > 0
    if backend in ("torch", "cuda_graph"):
        found = run()
        found = output(found[1] if backend == "cuda_graph" else found)
        with torch.no_grad():
            expected = model(batch)
        assert (found - expected).abs().max() <= 0.02 * expected.abs().max()
