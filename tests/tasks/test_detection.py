"""Object detection with torchvision's SSDlite: prune, repair, mAP, fine-tune."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from canvases import CLASSES, batched, canvases, follow_batches
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.errors import EvaluationError, TaskError
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.tasks.detection import Detection
from cleanai_ray.training.context import LocalContext, TrainingError

pytest.importorskip("torchmetrics")
TASK, SIZE = "detection", 64


def build() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=CLASSES, detections_per_img=20
    )
    model.transform.fixed_size = (SIZE, SIZE)
    return follow_batches(model).eval()


@pytest.fixture(scope="module")
def data() -> tuple[list[Any], list[Any]]:
    """Batches to train on and to judge by."""
    images, _, boxes = canvases(148, size=SIZE, zoom=5)
    return batched(images[:128], boxes[:128], 16), batched(images[128:], boxes[128:], 20)


@pytest.fixture(scope="module")
def trained(data: Any) -> nn.Module:
    model = build()
    cleanai.fine_tune(model, *data, task=TASK, epochs=4, optimizer="adamw", learning_rate=0.003, early_stopping=None)
    return model


def test_a_detector_is_pruned_repaired_and_fine_tuned(trained: nn.Module, data: Any, tmp_path: Path) -> None:
    training, judging = data
    before = copy.deepcopy(trained.state_dict())
    dense = cleanai.evaluate(trained, judging, task=TASK)
    assert dense.value > 10 * cleanai.evaluate(build(), judging, task=TASK).value
    assert dense.value > 0.05
    images = training[0][0]
    result = cleanai.prune(trained, images[:1], training[:2], method="wanda", ratio=0.3, task=TASK)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert type(result.model) is type(trained)
    assert 0.4 < result.plan.achieved["macs"] / result.plan.achieved["macs_dense"] < 0.7
    heads = [
        f"head.{part}_head.module_list.{level}.1" for part in ("classification", "regression") for level in range(6)
    ]
    assert result.plan.request["bounds"]["ignored_layers"] == heads
    for name in heads:
        assert result.model.get_submodule(name).out_channels == trained.get_submodule(name).out_channels
        assert result.model.get_submodule(name).in_channels < trained.get_submodule(name).in_channels
    pruned = cleanai.evaluate(result.model, judging, task=TASK)
    repaired = repair(
        trained, result, training[:4], RepairOptions(compensation="closed_form", batch_norm="relative"), task=TASK
    )
    found = cleanai.evaluate(repaired.model, judging, task=TASK)
    assert found.loss < pruned.loss
    tuned = cleanai.fine_tune(
        repaired.model, training, judging, task=TASK, epochs=1, optimizer="adamw", learning_rate=0.001
    )
    assert tuned.history[0]["train_accuracy"] is None
    assert tuned.history[0]["validation_loss"] < found.loss
    cleanai.save(result, tmp_path)
    loaded = cleanai.load(tmp_path, build).eval()
    with torch.no_grad():
        for one, other in zip(loaded(list(images)), result.model(list(images)), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("boxes", "scores", "labels"))


def test_map_is_torchmetrics_of_what_the_detector_returns(trained: nn.Module, data: Any) -> None:
    from torchmetrics.detection import MeanAveragePrecision

    library = MeanAveragePrecision()
    with torch.no_grad():
        for images, targets in data[1]:
            library.update(trained(list(images)), targets)
    assert cleanai.evaluate(trained, data[1], task=TASK).value == pytest.approx(float(library.compute()["map"]))


def test_perfect_detections_score_one() -> None:
    _, _, boxes = canvases(3)

    class Perfect(nn.Module):
        def forward(self, images: Any, targets: Any = None) -> Any:
            if self.training:
                return {"boxes": torch.tensor(0.25), "labels": torch.tensor(0.5)}
            return [{**entry, "scores": torch.ones(1)} for entry in boxes]

    found = cleanai.evaluate(Perfect(), [(torch.zeros(3, 3, 64, 64), boxes)], task=TASK)
    assert found.value == 1.0
    assert found.loss == 0.75
    assert found.num_samples == 3


def test_gradients_are_those_of_the_detectors_loss(trained: nn.Module, data: Any) -> None:
    images, targets = data[0][0]
    statistics = cleanai.calibrate(trained, [(images, targets)], gradients=True, task=TASK)
    model = copy.deepcopy(trained).eval()
    model.training = True
    sum(model(list(images), list(targets)).values()).backward()
    for name in ("head.classification_head.module_list.0.1.weight", "backbone.features.0.0.0.weight"):
        expected = len(images) * model.get_parameter(name).grad.abs().double()
        torch.testing.assert_close(statistics.gradients[name], expected, rtol=1e-3, atol=1e-6)
    assert not trained.training


def test_what_a_detector_cannot_do_is_refused(trained: nn.Module, data: Any) -> None:
    with pytest.raises(TaskError, match=r"label_smoothing is 0\.1; allowed for task detection: 0"):
        cleanai.fine_tune(copy.deepcopy(trained), *data, task=TASK, epochs=1, label_smoothing=0.1)
    with pytest.raises(TaskError, match=r"finetune\.distillation.*losses.*allowed: null"):
        cleanai.fine_tune(copy.deepcopy(trained), *data, task=TASK, epochs=1, teacher=trained, distillation={})
    with pytest.raises(TaskError, match="ResNet has no 'transform'; allowed for task detection"):
        cleanai.calibrate(torchvision.models.resnet18(), [data[0][0][0]], task=TASK)
    with pytest.raises(EvaluationError, match="output is Tensor, allowed is a list of dicts"):
        cleanai.evaluate(nn.Sequential(Stack()), [data[1][0]], task=TASK)
    several = LocalContext()
    several.world_size = 2
    with pytest.raises(TrainingError, match="2 processes train; allowed for task alone: 1"):
        cleanai.fine_tune(trained, *data, task=Alone(), epochs=1, context=several)


class Alone(Detection):
    """A task of one's own whose score cannot be computed in shares."""

    name = "alone"
    in_processes = False


class Stack(nn.Module):
    """Images stacked."""

    def forward(self, images: Any) -> Any:
        return torch.stack(images)
