"""Pruned torchvision networks in every float format: another process loads the files and computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conformance.test_architectures import network

import cleanai_ray as cleanai
from cleanai_ray.deploy._files import TOLERANCE
from cleanai_ray.registry import FORMATS

pytestmark = pytest.mark.slow

SIZES = {"resnet18": 64, "mobilenet_v2": 64, "vit_b_16": 32}
BATCH = 5

CHILD = """
import json, sys
import onnxruntime
import torch
from safetensors.torch import load_file
import cleanai_ray as cleanai
from cleanai_ray.models import build_model
from cleanai_ray.config.sections import ModelSection

torch.set_num_threads(1)
folder, section = sys.argv[1], ModelSection(**json.loads(sys.argv[2]))
images, expected = torch.load(folder + "/expected.pt")

def build():
    model = build_model(section)
    if hasattr(model, "encoder"):
        del model.encoder.layers[2:]
    return model

rebuilt = cleanai.load(folder + "/small", build).eval()
by_weights = cleanai.load(folder + "/small", build).eval()
for parameter in by_weights.parameters():
    torch.nn.init.zeros_(parameter)
by_weights.load_state_dict(load_file(folder + "/model.safetensors"))
session = onnxruntime.InferenceSession(folder + "/model.onnx", providers=["CPUExecutionProvider"])
with torch.no_grad():
    found = {
        "plan": rebuilt(images),
        "state_dict": by_weights(images),
        "torch_export": torch.export.load(folder + "/model.pt2").module()(images),
        "onnx": torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]),
    }
differences = {}
for name, logits in found.items():
    assert logits.shape == expected.shape, (name, logits.shape)
    differences[name] = (logits - expected).abs().max().item()
print(json.dumps(differences))
"""


@pytest.mark.parametrize("name", list(SIZES))
def test_every_format_of_a_pruned_network_survives_a_fresh_process(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    model, example, _, keep = network(name, SIZES[name])
    if hasattr(model, "encoder"):
        del model.encoder.layers[2:]  # Two of twelve like blocks: a sixth of the time.
    result = cleanai.prune(model, example, method="magnitude", ratio=0.3, **keep)
    small = result.model.eval()
    images = torch.randn(BATCH, *example.shape[1:], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = small(images)
        assert (expected - model.eval()(images)).abs().max() > 0.01, "pruning changed nothing that can be seen"
    torch.save((images, expected), tmp_path / "expected.pt")
    cleanai.save(result, tmp_path / "small")
    for format_name in ("state_dict", "torch_export", "onnx"):
        export = FORMATS.get(format_name)
        export(small, example, tmp_path / f"model{export.suffix}")
    section = {"name": name, "num_classes": 10, "input_shape": [3, SIZES[name], SIZES[name]]}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), json.dumps(section)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    allowed = TOLERANCE * max(1.0, expected.abs().max().item())
    assert differences.keys() == {"plan", "state_dict", "torch_export", "onnx"}
    assert all(difference <= allowed for difference in differences.values()), differences
