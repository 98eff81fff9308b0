"""Semantic segmentation with torchvision's networks: prune, repair, mIoU, fine-tune."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from canvases import CLASSES, batched, canvases, follow_batches
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.errors import EvaluationError
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.repair import RepairOptions, repair

TASK = "segmentation"


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    builder = getattr(torchvision.models.segmentation, name)
    return builder(weights=None, weights_backbone=None, num_classes=CLASSES, **auxiliary).eval()


@pytest.fixture(scope="module")
def data() -> tuple[list[Any], list[Any]]:
    """Batches to train on and to judge by."""
    images, masks, _ = canvases(128, size=32, zoom=3)
    return batched(images[:96], masks[:96], 16), batched(images[96:], masks[96:], 16)


@pytest.fixture(scope="module")
def trained(data: Any) -> nn.Module:
    model = follow_batches(build("lraspp_mobilenet_v3_large"))
    options = {"optimizer": "adamw", "learning_rate": 0.003, "early_stopping": None}
    cleanai.fine_tune(model, *data, task=TASK, epochs=3, **options)
    return model


def slow_mean_iou(model: nn.Module, batches: list[Any]) -> float:
    """The mean over classes of |both| / |either|, pixel sets and all."""
    answers: dict[int, set[Any]] = {label: set() for label in range(CLASSES)}
    labels: dict[int, set[Any]] = {label: set() for label in range(CLASSES)}
    with torch.no_grad():
        for number, (images, masks) in enumerate(batches):
            found = model(images)["out"].argmax(dim=1).numpy()
            for place, label in np.ndenumerate(masks.numpy()):
                if label != 255:
                    labels[int(label)].add((number, *place))
                    answers[int(found[place])].add((number, *place))
    return float(np.mean([len(answers[c] & labels[c]) / len(answers[c] | labels[c]) for c in range(CLASSES)]))


def test_mean_iou_is_that_of_sets_of_pixels(trained: nn.Module, data: Any) -> None:
    judging = [(images[:9], masks[:9].clone()) for images, masks in data[1]]
    judging[0][1][:, 10:20] = 255
    found = cleanai.evaluate(trained, judging, task=TASK)
    assert found.value == pytest.approx(slow_mean_iou(trained, judging), abs=1e-12)
    with torch.no_grad():
        logits = torch.cat([trained(images)["out"].double().log_softmax(dim=1) for images, _ in judging])
    masks = torch.cat([masks for _, masks in judging])
    chosen = masks != 255
    losses = -logits.movedim(1, -1)[chosen][torch.arange(int(chosen.sum())), masks[chosen]]
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found.num_samples == 18


def test_classes_that_do_not_occur_are_left_out() -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = torch.zeros(len(images), 4, 2, 2)
            logits[:, 1] = 1
            return logits

    masks = torch.tensor([[[0, 1], [1, 1]]])
    found = cleanai.evaluate(Constant(), [(torch.zeros(1, 3, 2, 2), masks)], task=TASK)
    assert found.parts == (0.0, 0.75, None, None)
    assert found.value == pytest.approx((0.0 + 0.75) / 2)


def test_lraspp_is_pruned_repaired_and_fine_tuned(trained: nn.Module, data: Any) -> None:
    training, judging = data
    before = copy.deepcopy(trained.state_dict())
    dense = cleanai.evaluate(trained, judging, task=TASK)
    background = float((torch.cat([masks for _, masks in judging]) == 0).double().mean())
    assert dense.value > 1.2 * background / CLASSES  # what background everywhere scores
    images = training[0][0]
    result = cleanai.prune(trained, images[:1], training[:2], method="wanda", ratio=0.3, task=TASK)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert count_hooks(trained) == 0
    assert type(result.model) is type(trained)
    kept = result.plan.achieved["macs"] / result.plan.achieved["macs_dense"]
    assert 0.4 < kept < 0.7
    assert result.model.backbone["1"].block[0][0].out_channels < trained.backbone["1"].block[0][0].out_channels
    assert result.model.classifier.high_classifier.out_channels == CLASSES
    pruned = cleanai.evaluate(result.model, judging, task=TASK)
    repaired = repair(
        trained, result, training[:4], RepairOptions(compensation="closed_form", batch_norm="relative"), task=TASK
    )
    assert type(repaired.model) is type(trained)
    found = cleanai.evaluate(repaired.model, judging, task=TASK)
    assert found.loss < pruned.loss
    tuned = cleanai.fine_tune(
        repaired.model, training, judging, task=TASK, epochs=1, optimizer="adamw", learning_rate=0.001, teacher=trained,
        distillation={"weight": 0.3},
    )  # fmt: skip
    assert set(tuned.history[0]) >= {"train_loss", "train_accuracy", "validation_mIoU"}
    assert tuned.history[0]["validation_loss"] < found.loss


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_a_pruned_network_is_the_dense_one_with_channels_silent(name: str, tmp_path: Path) -> None:
    model = build(name)
    images = canvases(2, size=32, zoom=3)[0]
    result = cleanai.prune(model, images[:1], method="magnitude", ratio=0.3, task=TASK)
    assert result.plan.achieved["params"] < 0.65 * result.plan.achieved["params_dense"]
    for part in ("classifier", "aux_classifier"):
        assert result.model.get_submodule(part)[-1].out_channels == CLASSES
    assert result.model.aux_classifier[0].out_channels < model.aux_classifier[0].out_channels
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for layer, kept in result.kept_inputs.items():
            module = silent.get_submodule(layer)
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                gone = np.setdiff1d(np.arange(module.in_channels), kept)
                module.weight[:, gone] = 0
        expected, found = silent(images), result.model(images)
    for key in ("out", "aux"):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4)
    if name.startswith("deeplab"):
        cleanai.save(result, tmp_path)
        loaded = cleanai.load(tmp_path, lambda: build(name)).eval()
        with torch.no_grad():
            assert torch.equal(loaded(images)["out"], found["out"])


def test_what_the_guide_shows_works(
    trained: nn.Module, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "other-tasks.md").read_text()
    example = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": trained, "training": data[0][:2], "validation": data[1][:1]}
    exec(example, names)
    assert names["tuned"].epochs_run == 2
    loaded = cleanai.load("small", lambda: build("lraspp_mobilenet_v3_large")).eval()
    images = data[1][0][0]
    with torch.no_grad():
        assert torch.equal(loaded(images)["out"], names["result"].model.eval()(images)["out"])


def test_gradients_are_those_of_the_training_loss() -> None:
    model = build("deeplabv3_mobilenet_v3_large")
    images, masks, _ = canvases(4, size=32, zoom=3)
    statistics = cleanai.calibrate(model, [(images, masks)], gradients=True, task=TASK)
    outputs = model(images)
    loss = nn.functional.cross_entropy(outputs["out"], masks) + 0.5 * nn.functional.cross_entropy(outputs["aux"], masks)
    loss.backward()
    for name in ("classifier.4.weight", "aux_classifier.4.weight", "backbone.0.0.weight"):
        expected = 4 * model.get_parameter(name).grad.abs().double()
        torch.testing.assert_close(statistics.gradients[name], expected, rtol=1e-4, atol=1e-7)


def test_an_output_of_another_size_is_refused() -> None:
    batch = torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64)
    with pytest.raises(EvaluationError, match=r"output is \[1, 3, 4, 4\], allowed is \[1, classes, 8, 8\]"):
        cleanai.evaluate(nn.Identity(), [batch], task=TASK)
