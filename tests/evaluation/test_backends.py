"""The back ends of `evaluation.latency` for real, on a net so small that it compiles in seconds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.deploy.onnx import to_onnx
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation import latency
from cleanai_ray.evaluation.latency import measure_latency, require_backends
from cleanai_ray.evaluation.targets import onnx_cpu

pytestmark = pytest.mark.slow


def small_net(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4)).eval()


def section(**fields: Any) -> LatencySection:
    return LatencySection.model_validate({"batch_sizes": (1, 3), "warmup": 1, "runs": 5, **fields})


def backends() -> list[str]:
    return ["eager", "onnxruntime", *(["compile"] if shutil.which("g++") else [])]


@pytest.mark.parametrize("name", backends())
def test_a_back_end_computes_what_the_model_computes_at_every_batch_size(name: str) -> None:
    if name == "onnxruntime":
        pytest.importorskip("onnxruntime")
    model, example = small_net(4), torch.randn(1, 1, 8, 8)
    translated = None
    for size in (1, 3):
        backend = latency._open(name, section(), size, torch.device("cpu"))  # type: ignore[arg-type]
        translated = translated or backend.translated(model, example)
        batch = torch.randn(size, 1, 8, 8)
        found = torch.as_tensor(backend.prepare(translated, batch)())
        with torch.inference_mode():
            torch.testing.assert_close(found, model(batch), rtol=1e-4, atol=1e-5)


def test_a_model_is_translated_once_for_all_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    translated: list[nn.Module] = []

    def content(model: nn.Module, *_: Any, **__: Any) -> bytes:
        translated.append(model)
        return to_onnx(model, torch.randn(1, 1, 8, 8))

    monkeypatch.setattr(onnx_cpu, "to_onnx", content)
    models = {"dense": small_net(4), "pruned": small_net(2)}
    measure_latency(models, torch.randn(1, 1, 8, 8), section(backends=("onnxruntime",)))
    assert translated == [models["dense"], models["pruned"]]


def test_there_are_rows_of_every_back_end_in_the_order_asked_for() -> None:
    pytest.importorskip("onnxruntime")
    models = {"dense": small_net(4).train(), "pruned": small_net(2)}
    asked = section(backends=("onnxruntime", "eager"))
    rows = measure_latency(models, torch.randn(1, 1, 8, 8), asked)
    assert [(row["backend"], row["batch_size"], row["variant"]) for row in rows] == [
        (backend, size, variant)
        for backend in ("onnxruntime", "eager")
        for size in (1, 3)
        for variant in ("dense", "pruned")
    ]
    assert all(module.training for module in models["dense"].modules())
    models["dense"](torch.randn(2, 1, 8, 8)).sum().backward()  # nothing of it was made in inference mode


class Unexportable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


def test_a_model_that_onnx_cannot_hold_is_an_error_that_names_field_and_model() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(EvaluationError, match=r"evaluation\.latency\.backends has onnxruntime: the dense model: "):
        measure_latency({"dense": Unexportable()}, torch.randn(1, 4), section(backends=("onnxruntime",)))


def test_onnxruntime_is_not_timed_on_another_device() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(EvaluationError, match=r"onnxruntime.*CPU.*cuda:0.*allowed.*: eager, compile"):
        require_backends(section(backends=("onnxruntime",)), "cuda:0")


WITHOUT = """
import sys
sys.modules["onnxruntime"] = None  # what import finds where it is not installed
from cleanai_ray.evaluation.latency import require_installed
from cleanai_ray.config.evaluation import LatencySection
try:
    require_installed(LatencySection(backends=("onnxruntime",)))
except Exception as error:
    print(type(error).__name__, error)
require_installed(LatencySection())
"""


def test_a_missing_package_is_a_sentence_with_the_extra_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == (
        "EvaluationError evaluation.latency.backends has onnxruntime: it needs the package onnxruntime, which is not "
        "installed: pip install 'cleanai-ray[onnx]'"
    )


NO_COMPILER = """
from cleanai_ray.evaluation.latency import require_backends
from cleanai_ray.evaluation.target_latency import open_target
from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.target import TargetSection
for check in (
    lambda: require_backends(LatencySection(backends=("compile",)), "cpu"),
    lambda: open_target(TargetSection(backend="torch_compile"), "cpu"),
):
    try:
        check()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_machine_without_a_compiler_is_told_so_before_anything_is_pruned(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", NO_COMPILER], check=True, capture_output=True, text=True, env=environment
    )
    listed, target = done.stdout.splitlines()
    assert listed.startswith("EvaluationError evaluation.latency.backends has compile: torch.compile fails here (")
    assert target.startswith("EvaluationError evaluation.target.backend is torch_compile: torch.compile fails here (")
    for said in (listed, target):
        assert said.endswith(
            "; it needs a C++ compiler on CPUs and triton on GPUs, allowed without them: torch without"
            " compilation, or onnxruntime"
        )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (("eager", "eager"), "evaluation.latency.backends holds eager twice"),
        (("tensorrt",), "'eager', 'compile' or 'onnxruntime'"),
        ((), "at least 1 item"),
    ],
)
def test_what_is_no_choice_of_back_ends_is_refused(value: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        section(backends=value)
