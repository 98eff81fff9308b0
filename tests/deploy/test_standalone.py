"""Models as folders of plain code and weights, loaded by processes in which nothing but torch can be imported."""

from __future__ import annotations

import copy
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from old_torch import NEEDS_EXPORT
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from cleanai_ray import api
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.deploy._files import TOLERANCE
from cleanai_ray.deploy.plain_code import NotPlainError, constructor, program_code
from cleanai_ray.deploy.plain_loader import read_weights
from cleanai_ray.deploy.standalone import export_standalone
from cleanai_ray.errors import ArtifactError
from cleanai_ray.models import build_model

EXAMPLE = torch.zeros(1, 3, 16, 16)

CHILD = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in sys.argv[2].split(','):
            raise ImportError(name + ' is not installed here')

sys.meta_path.insert(0, Nothing())
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from model import load
images, expected = torch.load(sys.argv[1] + '/../expected.pt')
model = load()
with torch.no_grad():
    for found, wanted in ((model(images), expected), (model(images[:1]), expected[:1])):
        assert found.shape == wanted.shape, found.shape
        print((found - wanted).abs().max().item())
assert not any(name.partition('.')[0] in sys.argv[2].split(',') for name in sys.modules)
"""
MISSING = ("ray", "cleanai_ray", "torchvision", "torch_pruning", "safetensors", "pydantic", "polars", "scipy")


def awake(model: nn.Module) -> nn.Module:
    """Give norms statistics that are not those of a new model, and the classifier weights that are not zero."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return model.eval()


def computes_the_same_elsewhere(model: nn.Module, folder: Path, images: Tensor) -> None:
    """Check a folder in a process that has torch and none of `MISSING`."""
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(images)
    torch.save((images, expected), folder.parent / "expected.pt")
    command = [sys.executable, "-I", "-c", CHILD, str(folder), ",".join(MISSING)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    allowed = TOLERANCE * max(1.0, expected.abs().max().item())
    assert expected.abs().max() > 1e-3
    assert max(map(float, done.stdout.split())) <= allowed


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(3, 7, 3, padding=1, bias=False), "nn.Conv2d(3, 7, 3, padding=1, bias=False)"),
        (nn.Conv2d(4, 8, (3, 1), stride=(2, 1), groups=4), "nn.Conv2d(4, 8, (3, 1), stride=(2, 1), groups=4)"),
        (nn.BatchNorm2d(7, eps=0.001), "nn.BatchNorm2d(7, eps=0.001)"),
        (nn.Linear(4, 2, bias=False), "nn.Linear(4, 2, bias=False)"),
        (nn.MaxPool2d(2), "nn.MaxPool2d(2, stride=2)"),
        (nn.AdaptiveAvgPool2d((1, 1)), "nn.AdaptiveAvgPool2d((1, 1))"),
        (nn.LayerNorm(12, eps=1e-6), "nn.LayerNorm((12,), eps=1e-06)"),
        (nn.GELU(approximate="tanh"), "nn.GELU(approximate='tanh')"),
        (nn.ReLU(inplace=True), "nn.ReLU(inplace=True)"),
        (nn.Flatten(), "nn.Flatten()"),
        (nn.Dropout(0.25), "nn.Dropout(p=0.25)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_is_written_as_it_was_made(layer: nn.Module, text: str) -> None:
    assert constructor(layer) == text
    assert repr(eval(text, {"nn": nn})) == repr(layer)


def test_a_layer_that_does_not_tell_its_arguments_is_not_plain() -> None:
    with pytest.raises(NotPlainError, match="Custom does not tell its argument size"):
        constructor(Custom(3))


class Custom(nn.Module):
    """Forgets what it was made of."""

    def __init__(self, size: int) -> None:
        super().__init__()


def test_weights_are_read_as_safetensors_wrote_them(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    state = {str(kind): (torch.arange(6).reshape(2, 3) % 2).to(kind) for kind in kinds}
    state |= {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3), "layer.0.weight": torch.randn(3, 1, 2)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors", metadata={"format": "pt"})
    found = read_weights(tmp_path / "w.safetensors")
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert torch.equal(found[name], value)


def test_weights_are_read_by_the_format_alone(tmp_path: Path) -> None:
    """Two numbers, 1 and 2, written byte by byte as the format's description has them."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1.0, 2.0))
    assert torch.equal(read_weights(tmp_path / "w")["x"], torch.tensor([1.0, 2.0]))


def test_a_pruned_network_of_convolutions_is_code_that_runs_with_torch_alone(tmp_path: Path) -> None:
    section = ModelSection(name="resnet20", num_classes=10, input_shape=(3, 16, 16))
    result = api.prune(awake(build_model(section)), EXAMPLE, method="magnitude", ratio=0.5, round_to=None)
    folder = export_standalone(result.model, EXAMPLE, tmp_path / "small")
    assert sorted(entry.name for entry in folder.iterdir()) == ["model.py", "model.safetensors"]
    text = (folder / "model.py").read_text()
    assert 'self._add("conv1", nn.Conv2d(3, 8, 3, padding=1, bias=False))' in text
    assert 'self._add("fc", nn.Linear(32, 10))' in text
    assert read_weights(folder / "model.safetensors").keys() == result.model.state_dict().keys()
    computes_the_same_elsewhere(result.model, folder, torch.randn(5, 3, 16, 16))


def test_a_pruned_transformer_is_code_that_runs_with_torch_alone(tmp_path: Path) -> None:
    model = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=12, num_classes=5
    )
    result = api.prune(awake(model), EXAMPLE, method="magnitude", ratio=0.5, round_to=None)
    folder = export_standalone(result.model, EXAMPLE, tmp_path / "small")
    text = (folder / "model.py").read_text()
    assert 'self._add("class_token", nn.Parameter(torch.empty((1, 1, 8), dtype=torch.float32)))' in text
    assert "torchvision" not in text
    computes_the_same_elsewhere(result.model, folder, torch.randn(5, 3, 16, 16))


class Counting(nn.Module):
    """Python counts over a width, which torch.fx cannot follow and torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        found = self.layer(images)
        return torch.stack([found[:, channel].sum((1, 2)) for channel in range(found.shape[1])], 1)


@NEEDS_EXPORT
def test_what_cannot_be_written_as_code_is_a_program_that_runs_with_torch_alone(tmp_path: Path) -> None:
    model = Counting().eval()
    folder = export_standalone(model, EXAMPLE, tmp_path / "small")
    assert sorted(entry.name for entry in folder.iterdir()) == ["model.pt2", "model.py"]
    assert "could not be written so: " in (folder / "model.py").read_text()
    computes_the_same_elsewhere(model, folder, torch.randn(5, 3, 16, 16))


class Noticing(nn.Module):
    """Computes something else for batches of two, the size with which a model is recorded."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.shape[0] == 2 else -images.flatten(1)


def test_code_that_is_right_for_one_size_of_batch_alone_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Noticing cannot be captured"):
        export_standalone(Noticing(), EXAMPLE, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


@NEEDS_EXPORT
def test_a_folder_is_replaced_if_an_export_made_it_and_refused_otherwise(tmp_path: Path) -> None:
    folder = export_standalone(Counting().eval(), EXAMPLE, tmp_path / "small")
    (folder / "README.md").write_text("a card")
    layer = nn.Sequential(nn.Flatten(), nn.Linear(768, 2)).eval()
    export_standalone(layer, EXAMPLE, folder)
    assert sorted(entry.name for entry in folder.iterdir()) == ["README.md", "model.py", "model.safetensors"]
    assert (folder / "README.md").read_text() == "a card"
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds 'thesis\.tex', which no export wrote"):
        export_standalone(layer, EXAMPLE, folder)
    assert (folder / "thesis.tex").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_somebody_else_wrote_is_refused(tmp_path: Path) -> None:
    layer = nn.Sequential(nn.Flatten(), nn.Linear(768, 2)).eval()
    (tmp_path / "model.py").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds a 'model\.py' that no export wrote"):
        export_standalone(layer, EXAMPLE, tmp_path)
    with pytest.raises(ArtifactError, match="is a file, and this format is a folder"):
        export_standalone(layer, EXAMPLE, tmp_path / "model.py")
    assert (tmp_path / "model.py").read_text() == "mine"


def test_a_reason_cannot_end_the_text_that_it_stands_in() -> None:
    text = program_code("Net", 'a """quoted"""\nreason \\')
    compile(text, "model.py", "exec")
    assert "could not be written so: a quoted reason" in " ".join(text.split())
