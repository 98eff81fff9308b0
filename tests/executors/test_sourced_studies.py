"""Models as users have them go through `cleanai run` unchanged: of timm, of transformers, of Lightning and of DDP."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from source_models import MODEL_ORDER, write_hf_resnet, write_hf_vit, write_images, write_timm
from torch import nn

from cleanai_ray.cli import main
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.models import build_model

SETTINGS: dict[str, Any] = {
    "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
    "repair": {"samples": 24},
    "finetune": {"epochs": 1, "batch_size": 12},
}
DIGITS = {"name": "digits", "calibration": {"samples": 64}}


def run(folder: Path, study: dict[str, Any], *options: str) -> int:
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": "sourced", **SETTINGS, **study}))
    words = ("--executor", "local", "--out", str(folder / "run"), "--no-report")
    return main(["run", str(folder / "study.yaml"), *words, *options])


def row_of(folder: Path) -> dict[str, Any]:
    (row,) = pq.read_table(folder / "run" / "results.parquet").to_pylist()
    return row


def accuracy_by_hand(model: nn.Module, images: Path, prepare) -> float:
    """Score a model as its own library would: its transform, its numbers of the classes."""
    right, total = 0, 0
    for path in sorted((images / "val").rglob("*.png")):
        with torch.no_grad():
            scores = model.eval()(prepare(Image.open(path))[None])
        scores = getattr(scores, "logits", scores)
        right, total = right + int(MODEL_ORDER[int(scores.argmax())] == path.parent.name), total + 1
    return right / total


@pytest.mark.parametrize("write", [write_hf_resnet, write_hf_vit])
def test_a_classifier_of_transformers_runs_unchanged(tmp_path, write):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers import AutoImageProcessor

    model, images = write(tmp_path / "model"), write_images(tmp_path / "images")
    data = {"name": "image_folder", "root": str(images), "batch_size": 12, "calibration": {"samples": 24}}
    assert run(tmp_path, {"model": {"name": f"hf:{tmp_path / 'model'}"}, "data": data}) == 0
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")

    def prepare(image: Image.Image) -> torch.Tensor:
        return torch.as_tensor(processor(image)["pixel_values"][0])

    row = row_of(tmp_path)
    assert row["status"] == "ok"
    assert row["accuracy_dense"] == pytest.approx(accuracy_by_hand(model, images, prepare))
    assert row["macs"] < row["macs_dense"]
    exported = main(["export", str(tmp_path / "run"), "--trial", "best", "--format", "torch_export"])
    assert exported == 0


def test_a_classifier_of_timm_runs_unchanged(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model, images = write_timm(tmp_path / "model"), write_images(tmp_path / "images")
    data = {"name": "image_folder", "root": str(images), "batch_size": 12, "calibration": {"samples": 24}}
    assert run(tmp_path, {"model": {"name": f"timm:{tmp_path / 'model'}"}, "data": data}) == 0
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    row = row_of(tmp_path)
    assert row["status"] == "ok"
    assert row["accuracy_dense"] == pytest.approx(accuracy_by_hand(model, images, prepare))
    assert row["macs"] < row["macs_dense"]


def trained_state() -> dict[str, torch.Tensor]:
    return build_model(ModelSection(name="resnet20", input_shape=(1, 8, 8)), seed=5).state_dict()


def test_a_checkpoint_of_lightning_runs_unchanged(tmp_path, caplog):
    state = {f"net.{name}": value for name, value in trained_state().items()}
    content = {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**state, "loss.weight": torch.ones(10)},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}],
        "callbacks": {"ModelCheckpoint": {"monitor": "val_acc", "best_model_score": torch.tensor(0.1)}},
    }
    torch.save(content, tmp_path / "last.ckpt")
    model = {"name": "resnet20", "input_shape": [1, 8, 8], "weights": str(tmp_path / "last.ckpt")}
    assert run(tmp_path, {"model": model, "data": DIGITS}) == 0
    assert row_of(tmp_path)["status"] == "ok"
    assert "'net.' dropped before names" in caplog.text


def test_a_checkpoint_of_ddp_runs_unchanged_and_is_warned_of(tmp_path, capsys):
    state = {f"module.{name}": value for name, value in trained_state().items()}
    content = {"epoch": 3, "state_dict": state, "best_acc1": torch.tensor(97.0), "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    model = {"name": "resnet20", "input_shape": [1, 8, 8], "weights": str(tmp_path / "checkpoint.pth.tar")}
    assert run(tmp_path, {"model": model, "data": DIGITS}) == 0
    assert row_of(tmp_path)["status"] == "ok"
    said = " ".join(capsys.readouterr().out.split())
    assert "less than half of the 97.00% that" in said


def test_a_dense_model_far_below_what_is_expected_ends_the_study(tmp_path, capsys):
    torch.save(trained_state(), tmp_path / "w.pt")
    model = {"name": "resnet20", "input_shape": [1, 8, 8], "weights": str(tmp_path / "w.pt"), "expected_accuracy": 0.9}
    assert run(tmp_path, {"model": model, "data": DIGITS}) == 2
    assert "model.expected_accuracy is 0.9; nothing was pruned" in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.parquet").exists()


def test_a_model_of_several_outputs_runs_with_a_selector(tmp_path, monkeypatch):
    (tmp_path / "two_outputs_of_ours.py").write_text(
        """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
        self.coarse, self.fine = nn.Linear(16, num_classes), nn.Linear(16, num_classes)

    def forward(self, images):
        features = self.conv2(self.conv(images).relu()).relu().mean((2, 3))
        return {"coarse": self.coarse(features), "fine": self.fine(features)}

def build(num_classes):
    return Net(num_classes)
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = {"factory": "two_outputs_of_ours:build", "input_shape": [1, 8, 8], "output": "fine"}
    assert run(tmp_path, {"model": model, "data": DIGITS}) == 0
    assert row_of(tmp_path)["status"] == "ok"
