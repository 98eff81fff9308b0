"""The fused reduction of activations: equal to the plain one, compilable, and few launches."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted_kernels import assert_equal, layouts
from small_nets import batches, build
from torch import nn
from torch.profiler import ProfilerActivity, profile

from cleanai_ray import calibrate
from cleanai_ray.statistics import fused_sums
from cleanai_ray.statistics.layer_sums import sums_of

SCRIPT = Path(__file__).with_name("interpreted_kernels.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
def test_the_kernels_give_what_the_plain_reduction_gives() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus_of_two_generations(capability: int) -> None:
    """Without a GPU: Triton brings the assembler along."""
    from triton import __version__ as triton_version
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cleanai_ray.statistics import triton_kernels as kernels

    integers = dict.fromkeys(("num_channels", "num_positions", "stride_n", "stride_c", "stride_p", "size"), "i32")
    cases: list[tuple[Any, dict[str, str], dict[str, int]]] = [
        (kernels.reduce_positions, {"values": "*fp16", "rows": "*fp32", **integers}, {"BLOCK_C": 64, "BLOCK_P": 32}),
        (
            kernels.find_strongest,
            {"table": "*i64", "arena": "*fp32", "top_k": "i32"},
            {"BLOCK": 128, "ENTRY": kernels.ENTRY},
        ),
        (
            kernels.add_samples,
            {"table": "*i64", "arena": "*fp32", "num_columns": "i32"}
            | dict.fromkeys(("totals", "extremes", "threshold"), "*fp64"),
            {"BLOCK_N": 8, "BLOCK_C": 32, "ENTRY": kernels.ENTRY},
        ),
    ]
    by_place = tuple(map(int, triton_version.split(".")[:2])) >= (3, 3)  # before, constants stood beside the signature
    for kernel, types, constants in cases:
        if by_place:
            signature = {**types, **dict.fromkeys(constants, "constexpr")}
            names = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
            source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, names)
        else:
            source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names if name in types}, constants)
        assert compile_kernel(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


def test_kernels_that_do_not_compile_are_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError("no C compiler was found")

    monkeypatch.setattr(fused_sums, "check_kernels", fail)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    fused_sums._kernels_work.cache_clear()
    device = torch.device("cuda:0")
    with caplog.at_level(logging.WARNING):
        assert fused_sums.open_fused_sums(device, 0.0, 10) is None
        assert fused_sums.open_fused_sums(device, 0.0, 10) is None
    fused_sums._kernels_work.cache_clear()
    (line,) = caplog.messages
    assert "no C compiler was found" in line


def test_kernels_that_run_out_of_memory_are_no_reason_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fused_sums, "check_kernels", fail)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(torch.OutOfMemoryError):
        fused_sums.open_fused_sums(torch.device("cuda:0"), 0.0, 10)


def test_a_processor_uses_the_plain_reduction() -> None:
    assert fused_sums.open_fused_sums(torch.device("cpu"), 0.0, 10) is None


VIEWS = ("aten::alias", "aten::new_empty", "aten::select", "aten::slice", "aten::unbind")


@pytest.mark.parametrize(("is_positive", "passes"), [(False, 9), (True, 6)])
def test_the_plain_reduction_launches_few_operations_a_layer(is_positive: bool, passes: int) -> None:
    activation = torch.randn(8, 16, 100)
    activation = activation.relu() if is_positive else activation
    sums_of(activation, 0.0, 10)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as run:
        sums_of(activation, 0.0, 10)
    launched = [
        event
        for event in run.events()
        if event.name.startswith("aten::") and event.cpu_parent is None and event.name not in VIEWS
    ]
    whole = [event.name for event in launched if list(activation.shape) in event.input_shapes]
    whole.remove("aten::to")  # to float32, which they are
    # Over positions: sum, norm, minimum, maximum, and sum of signs; if some are negative, their magnitudes, the sum of
    # these, and the signs above 0.
    assert len(whole) <= passes, whole
    # Over samples and channels: 3 to see that none is negative, 1 copy, 3 conversions to float64, 2 for means and
    # squares, 3 for active and strongest channels, stack and sum, minimum and maximum.
    assert len(launched) - 1 - len(whole) <= 16, [event.name for event in launched]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu_the_kernels_give_what_the_plain_reduction_gives(dtype: torch.dtype) -> None:
    fused = fused_sums.FusedSums(torch.device("cuda:0"), 0.05, 3)
    values = {name: value.to("cuda:0", dtype) for name, value in layouts().items()}
    for name, value in values.items():
        fused.add(("inputs", name), value)
    for (_, name), found in fused.sums().items():
        expected = sums_of(values[name].cpu(), 0.05, 3)
        assert_equal(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["residual", "depthwise", "flattened"])
def test_a_gpu_gives_the_statistics_of_a_processor(name: str) -> None:
    model, data = build(name), batches(sizes=(5, 7, 4))
    expected = calibrate(model, data, outputs=True)
    found = calibrate(model.cuda(), data, outputs=True)
    for side in ("inputs", "outputs"):
        for layer, value in getattr(expected, side).items():
            for field, tensor in value.tensors().items():
                mine = getattr(getattr(found, side)[layer], field)
                scale = float(tensor.abs().max())
                assert torch.allclose(mine, tensor, rtol=1e-3, atol=1e-3 * scale), (side, layer, field)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_in_a_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).cuda().eval()
    images = torch.randn(6, 3, 12, 12, device="cuda")

    def data() -> Any:
        yield images
        yield images  # The first batch compiled the kernels, and made the table of the layers.
        torch.cuda.set_sync_debug_mode("error")
        yield images
        torch.cuda.set_sync_debug_mode("default")

    try:
        found = calibrate(model, data())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.num_samples == 18
