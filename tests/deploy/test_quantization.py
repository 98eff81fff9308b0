"""Quantised models against their definitions, and models that are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load as load_state
from torch import Tensor, nn

from cleanai_ray import prune
from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.deploy import OnnxModel, quantize, timing_of
from cleanai_ray.deploy.onnx import shorten_names, to_onnx
from cleanai_ray.errors import ArtifactError, EvaluationError
from cleanai_ray.evaluation.latency import measure_latency
from cleanai_ray.models.resnet20 import ResNetCifar
from cleanai_ray.nn.weights import safetensors_bytes

IMAGES = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))
EXAMPLE = IMAGES[:1]
BATCHES = [(IMAGES[:32], torch.zeros(32)), (IMAGES[32:], torch.zeros(8))]


def small_net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.Flatten(), nn.Linear(180, 4)
    )
    for _ in range(3):
        model.train()(IMAGES)
    return model.eval()


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def test_int8_weights_have_seven_bits_and_a_scale_for_each_output_channel() -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = small_net()
    graph = onnx.load_from_string(quantize("int8", model, EXAMPLE, BATCHES).content).graph
    arrays = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    codes = {name: value for name, value in arrays.items() if value.dtype == torch.int8 and value.ndim > 1}
    assert sorted(tuple(value.shape) for value in codes.values()) == [(4, 180), (5, 7, 3, 3), (7, 3, 3, 3)]
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in codes:
            weights, scales = codes[node.input[0]], arrays[node.input[1]]
            assert weights.flatten(1).abs().amax(1).max() <= 64
            if weights.ndim == 4:
                assert scales.shape == (len(weights),)
            if weights.shape == (5, 7, 3, 3):
                # Round to nearest: off by half a step at the most, and a step is the channel's range in 7 bits.
                off = weights * scales.reshape(-1, 1, 1, 1) - model[3].weight.detach()
                assert (off.abs() <= 0.51 * scales.reshape(-1, 1, 1, 1)).all()
                largest = model[3].weight.detach().abs().flatten(1).amax(1)
                torch.testing.assert_close(scales, largest / 64, rtol=0.02, atol=0)


def test_int8_computes_nearly_the_same_with_any_batch_and_leaves_the_model_alone() -> None:
    pytest.importorskip("onnxruntime")
    model = small_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantized = quantize("int8", model, EXAMPLE, BATCHES)
    for count in (1, 5):
        expected, found = outputs(model, IMAGES[:count]), outputs(quantized.model, IMAGES[:count])
        assert 0 < (expected - found).norm() < 0.05 * expected.norm()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert quantized.file == "int8.onnx"
    assert torch.equal(outputs(OnnxModel(quantized.content), IMAGES), outputs(quantized.model, IMAGES))


def test_short_names_change_nothing_but_names() -> None:
    onnx = pytest.importorskip("onnx")
    content = to_onnx(small_net(), EXAMPLE)
    before, after = onnx.load_from_string(content), shorten_names(onnx.load_from_string(content))
    onnx.checker.check_model(after)
    for first, second in zip(before.graph.node, after.graph.node, strict=True):
        assert (first.op_type, list(first.attribute)) == (second.op_type, list(second.attribute))
    shortened = [name for node in after.graph.node for name in (*node.input, *node.output) if name]
    assert {name for name in shortened if len(name) > 1} == {"images", "logits"}
    assert len(set(shortened)) == len({name for node in before.graph.node for name in (*node.input, *node.output)})
    found = outputs(OnnxModel(after.SerializeToString()), IMAGES)
    assert torch.equal(found, outputs(OnnxModel(content), IMAGES))


def test_int8_of_a_small_network_is_little_more_than_a_byte_for_each_weight() -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    model = ResNetCifar(10, 1, (16, 32, 64)).eval()
    pruned = prune(model, images[:1], method="magnitude", ratio=0.5, repair=False).model
    content = quantize("int8", pruned, images[:1], [(images, torch.zeros(8))]).content
    assert len(content) <= 0.35 * len(safetensors_bytes(pruned))
    weights = {entry.name for entry in onnx.load_from_string(content).graph.initializer if len(entry.dims) == 4}
    assert {name.removesuffix("_quantized") for name in weights} >= {"conv1.weight", "layer3.2.conv2.weight"}


def test_int8_without_an_image_is_refused() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ArtifactError, match=r"int8 needs calibration images, .* 0$"):
        quantize("int8", small_net(), EXAMPLE, [])


def test_bf16_halves_the_weights_and_its_file_loads_into_a_cast_model() -> None:
    model = small_net()
    quantized = quantize("bf16", model, EXAMPLE, [])
    state = load_state(quantized.content)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(state[name], value.to(torch.bfloat16))
            assert 2 * state[name].nbytes == value.nbytes
        else:
            assert torch.equal(state[name], value)
    loaded = small_net().to(torch.bfloat16)
    loaded.load_state_dict(state)
    found = outputs(quantized.model, IMAGES)
    assert found.dtype == torch.float32
    assert torch.equal(found, outputs(loaded, IMAGES.to(torch.bfloat16)).float())
    expected = outputs(model, IMAGES)
    # Bfloat16 keeps 8 bits of a number: each product and sum is off by up to 2^-8.
    assert 0 < (expected - found).norm() < 0.02 * expected.norm()
    assert model[0].weight.dtype == torch.float32


def test_what_cannot_run_a_quantised_model_does_not_time_it() -> None:
    section = LatencySection(backends=("eager", "onnxruntime"), runs=7)
    assert timing_of("none", section) == section
    assert timing_of("int8", section).backends == ("onnxruntime",)
    assert timing_of("bf16", section).backends == ("eager",)
    assert timing_of("bf16", LatencySection(backends=("onnxruntime",))).backends == ("eager",)
    assert timing_of("int8", section).runs == 7


def test_int8_is_timed_beside_the_dense_model_in_onnxruntime() -> None:
    pytest.importorskip("onnxruntime")
    model = small_net()
    section = timing_of("int8", LatencySection(batch_sizes=(1,), warmup=1, runs=5))
    models = {"dense": model, "pruned": quantize("int8", model, EXAMPLE, BATCHES).model}
    rows = measure_latency(models, EXAMPLE, section)
    assert [(row["variant"], row["backend"]) for row in rows] == [("dense", "onnxruntime"), ("pruned", "onnxruntime")]
    assert all(row["latency_ms_p50"] > 0 for row in rows)


def test_a_hook_left_on_the_model_is_refused() -> None:
    model = small_net()
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(EvaluationError, match="'0'"):
        quantize("bf16", model, EXAMPLE, [])


def test_without_onnxruntime_a_study_of_int8_stops_before_anything_is_computed() -> None:
    pytest.importorskip("onnx")
    code = """
import sys
sys.modules["onnxruntime"] = None  # what import finds where it is not installed
from cleanai_ray.errors import EvaluationError
from cleanai_ray.stages.planning import check_study
from cleanai_ray.config.study import parse_study

def study(*names):
    return parse_study({
        "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8]},
        "data": {"name": "digits", "calibration": {"samples": 64}},
        "sweep": {"methods": ["magnitude"], "ratios": [0.3], "quantization": names},
    })

check_study(study("none", "bf16"))
try:
    check_study(study("bf16", "int8"))
except EvaluationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "sweep.quantization has int8: format onnx needs the package onnxruntime, which is not installed: "
        "pip install 'cleanai-ray[onnx]'"
    )
