from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from old_torch import NEEDS_EXPORT
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from cleanai_ray.deploy._files import require_same_output
from cleanai_ray.errors import ArtifactError, EvaluationError
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.registry import FORMATS

EXAMPLE = torch.zeros(1, 3, 16, 16)

SOURCE = """
import torch
from torch import nn

class OddNet(nn.Module):
    '''Widths as pruning leaves them, with a residual sum, a depthwise convolution and a pooled head.'''

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(7, 13, 1), nn.Conv2d(13, 13, 3, padding=1, groups=13), nn.BatchNorm2d(13))
        self.right = nn.Conv2d(7, 13, 1)
        self.head = nn.Linear(13, 5)

    def forward(self, images):
        x = self.stem(images)
        x = torch.relu(self.left(x) + self.right(x))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
"""
namespace: dict[str, type[nn.Module]] = {"__name__": "odd_net"}
exec(SOURCE, namespace)


def odd_net() -> nn.Module:
    """An OddNet with running statistics that are not those of a new batch-norm; in training mode."""
    torch.manual_seed(0)
    model = namespace["OddNet"]().train()
    for _ in range(3):
        model(torch.randn(8, 3, 16, 16) * 2 + 1)
    return model


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(images)


def export(name: str, model: nn.Module, folder: Path) -> Path:
    path = folder / "deep" / f"model{FORMATS.get(name).suffix}"
    assert FORMATS.get(name)(model, EXAMPLE, path) == path
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return path


def in_a_fresh_process(code: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_formats_are_registered() -> None:
    assert FORMATS.names() == ("onnx", "onnx_int8", "standalone", "state_dict", "torch_export", "transformers")
    assert all(FORMATS.summaries().values())


def test_state_dict_round_trip_in_a_fresh_process(tmp_path: Path) -> None:
    model = odd_net()
    path = export("state_dict", model, tmp_path)
    images = torch.randn(4, 3, 16, 16)
    torch.save((images, outputs(model, images)), tmp_path / "expected.pt")
    code = f"""{SOURCE}
import sys
from safetensors.torch import load_file
torch.set_num_threads(1)
model = OddNet().eval()
model.load_state_dict(load_file(sys.argv[1]))
images, expected = torch.load(sys.argv[2])
assert torch.equal(model(images), expected)
assert 'cleanai_ray' not in sys.modules
"""
    in_a_fresh_process(code, path, tmp_path / "expected.pt")
    assert path.stat().st_size == measure_complexity(model, EXAMPLE).size_bytes


@pytest.mark.parametrize("batch_size", [1, 5])
def test_torch_export_round_trip_with_any_batch(tmp_path: Path, batch_size: int) -> None:
    model = odd_net()
    path = export("torch_export", model, tmp_path)
    images = torch.randn(batch_size, 3, 16, 16)
    torch.testing.assert_close(torch.export.load(path).module()(images), outputs(model, images), rtol=1e-4, atol=1e-5)


def test_onnx_round_trip_with_any_batch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = odd_net()
    path = export("onnx", model, tmp_path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch_size in (1, 5):
        images = torch.randn(batch_size, 3, 16, 16)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), outputs(model, images), rtol=1e-4, atol=1e-5)


@NEEDS_EXPORT
@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_a_vision_transformer_is_exported(tmp_path: Path, name: str) -> None:
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    model = VisionTransformer(
        image_size=16, patch_size=8, num_layers=1, num_heads=3, hidden_dim=21, mlp_dim=10, num_classes=5
    )
    nn.init.normal_(model.heads.head.weight)
    assert export(name, model, tmp_path).stat().st_size > 4 * sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("name", ["onnx", "standalone", "state_dict", "torch_export"])
def test_the_model_is_not_changed_and_nothing_is_printed(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    model = odd_net()
    model.head.eval()
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    export(name, model, tmp_path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


class DependsOnTheBatch(nn.Module):
    """Cannot be captured: Python decides by the values of a tensor."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


@pytest.mark.parametrize("name", ["onnx", "standalone", "torch_export"])
def test_what_cannot_be_captured_leaves_no_file(tmp_path: Path, name: str) -> None:
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / "model"
    with pytest.raises(ArtifactError, match="DependsOnTheBatch cannot be captured"):
        FORMATS.get(name)(DependsOnTheBatch(), EXAMPLE, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("version", "advised"), [("2.6.0", True), ("2.7.1+cpu", False), ("2.10.0", False)])
def test_an_old_torch_is_named_where_it_captures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, advised: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ArtifactError) as raised:
        FORMATS.get("torch_export")(DependsOnTheBatch(), EXAMPLE, tmp_path / "model.pt2")
    assert str(raised.value).endswith("; torch 2.7 and newer capture more models") == advised


class BranchesWhileTraced(nn.Module):
    """Computes something else when it is captured than when it runs, by 0.25 in one place."""

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)[:, :4] * 0.01
        return flat if torch.compiler.is_exporting() else flat + torch.tensor([0.0, 0.25, 0.0, 0.0])


@NEEDS_EXPORT  # and lets a model ask whether it is being exported
@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_a_wrong_export_is_refused_and_an_older_file_stays(tmp_path: Path, name: str) -> None:
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / "model"
    path.write_text("older")
    with pytest.raises(ArtifactError, match=r"differs from torch by 0\.25"):
        FORMATS.get(name)(BranchesWhileTraced(), EXAMPLE, path)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_are_compared_on_the_scale_of_the_largest() -> None:
    expected = torch.tensor([[100.0, 1.0]])
    require_same_output(expected, expected + 0.009, "onnx")
    with pytest.raises(ArtifactError, match=r"by 0\.011"):
        require_same_output(expected, expected + 0.011, "onnx")
    with pytest.raises(ArtifactError, match="by nan"):
        require_same_output(expected, expected * torch.nan, "onnx")
    with pytest.raises(ArtifactError, match=r"\(1, 2\)"):
        require_same_output(expected, expected[:, :1], "onnx")


def test_tied_weights_and_views_are_written_under_every_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    wide = torch.randn(2, 1000)
    model[2].weight = nn.Parameter(wide[:, :4])
    model[2].bias = nn.Parameter(wide[0, 5:7])
    path = FORMATS.get("state_dict")(model, torch.zeros(1, 4), tmp_path / "weights.safetensors")
    state = load_file(path)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert path.stat().st_size < 1000


def test_a_hook_left_on_the_model_is_refused(tmp_path: Path) -> None:
    model = odd_net()
    model.head.register_forward_hook(lambda *_: None)
    with pytest.raises(EvaluationError, match="'head'"):
        FORMATS.get("torch_export")(model, EXAMPLE, tmp_path / "model.pt2")


def test_without_onnxruntime_the_error_says_what_to_install(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    code = """
import sys
sys.modules['onnxruntime'] = None  # as if it were not installed
import torch
from pathlib import Path
from cleanai_ray.errors import ArtifactError
from cleanai_ray.registry import FORMATS
try:
    FORMATS.get('onnx')(torch.nn.Linear(2, 2), torch.zeros(1, 2), Path(sys.argv[1]))
except ArtifactError as error:
    assert "pip install 'cleanai-ray[onnx]'" in str(error) and 'onnxruntime' in str(error), error
else:
    raise AssertionError('no error')
assert not Path(sys.argv[1]).exists()
"""
    in_a_fresh_process(code, tmp_path / "model.onnx")
