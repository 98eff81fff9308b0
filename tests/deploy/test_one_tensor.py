"""Models that return mappings or sequences are exported as functions that return the tensor that counts."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.deploy import onnx
from cleanai_ray.deploy._files import private_copy, reason_of
from cleanai_ray.deploy.one_tensor import returning_one_tensor
from cleanai_ray.errors import ArtifactError
from cleanai_ray.registry import FORMATS

EXAMPLE = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))


class Returns(nn.Module):
    """Returns what a function makes of two tensors: three logits and two hidden values."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head, self.made = nn.Linear(4, 2), nn.Linear(2, 3), made

    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x).relu()
        return self.made(self.head(hidden), hidden)


def as_mapping(logits: Tensor, hidden: Tensor) -> Any:
    return OrderedDict(hidden=hidden, logits=logits)


def as_nested(logits: Tensor, hidden: Tensor) -> Any:
    return (None, [logits])


def as_two(logits: Tensor, hidden: Tensor) -> Any:
    return [logits, hidden]


def as_tensor(logits: Tensor, hidden: Tensor) -> Any:
    return logits


def as_nothing(logits: Tensor, hidden: Tensor) -> Any:
    return {"sizes": len(logits)}


@pytest.mark.parametrize("made", [as_mapping, as_nested])
def test_the_tensor_that_counts_is_returned(made: Any) -> None:
    model, expected = Returns(made), Returns(as_tensor)(EXAMPLE)
    view = returning_one_tensor(model, EXAMPLE, "onnx")
    assert torch.equal(view(EXAMPLE), expected)
    assert type(view).__name__ == "Returns"
    tensor = Returns(as_tensor)
    assert returning_one_tensor(tensor, EXAMPLE, "onnx") is tensor


@pytest.mark.parametrize("name", ["onnx", "standalone", "torch_export"])
@pytest.mark.parametrize(("made", "told"), [(as_two, "a list of 2 tensors"), (as_nothing, "a dict of no tensors")])
def test_outputs_of_which_none_counts_are_refused(name: str, made: Any, told: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(ArtifactError, match=f"returns {told}; allowed for format '{name}': one tensor"):
        FORMATS.get(name)(Returns(made).eval(), EXAMPLE, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "torch_export", "standalone"])
def test_a_mapping_is_exported_as_its_logits(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = Returns(as_mapping).eval()
    path = FORMATS.get(name)(model, EXAMPLE, tmp_path / "model")
    batch = torch.randn(5, 4)
    with torch.no_grad():
        expected = model(batch)["logits"]
        if name == "onnx":
            found = torch.from_numpy(onnx.open_session(path.read_bytes())(batch))
        elif name == "torch_export":
            found = torch.export.load(path).module()(batch)
        else:  # The file that was written was compared with the model.
            assert (path / "model.py").exists()
            return
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class KeepsWhatItComputed(nn.Module):
    """Keeps a tensor that autograd computed, as some caches of position biases are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.kept = nn.Linear(4, 3), None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.fc.weight.square()
        return self.fc(x)


def test_a_model_that_keeps_computed_tensors_is_copied() -> None:
    model = KeepsWhatItComputed().eval()
    model(EXAMPLE)
    assert model.kept is not None
    assert not model.kept.is_leaf
    copy = private_copy(model)
    assert torch.equal(copy(EXAMPLE), model(EXAMPLE))


@pytest.mark.parametrize("error", [RuntimeError("no such operation\nmore"), ValueError()])
def test_what_onnxruntime_cannot_run_is_refused(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")

    def fail(content: bytes) -> Any:
        raise error

    monkeypatch.setattr(onnx, "_translate", lambda *_: b"")
    monkeypatch.setattr(onnx, "open_session", fail)
    told = str(error).partition("\n")[0] or "ValueError"
    with pytest.raises(ArtifactError, match=f"onnxruntime cannot run Returns: {told}$"):
        onnx.to_onnx(Returns(as_tensor).eval(), EXAMPLE)


def test_reasons_are_those_of_the_first_cause_in_one_line() -> None:
    violated = ValueError(
        "Constraints violated (batch)! See elsewhere.\n  - batch is a constant (2).\nFixes:\n  batch = 2"
    )
    outer = RuntimeError("\x1b[96mstep 2/3\x1b[0m failed")
    assert reason_of(outer) == "step 2/3 failed"
    outer.__cause__ = violated
    assert reason_of(outer) == "batch is a constant (2)."
    assert reason_of(KeyError()) == "KeyError"
