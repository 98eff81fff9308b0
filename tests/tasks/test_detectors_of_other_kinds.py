"""Detectors of two stages, and a YOLO of one's own: calibrate, prune, repair, score, save, and a study of each."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_study as small
import torch
import torchvision
import yolo_detector
from canvases import CLASSES, batched, canvases, follow_batches
from PIL import Image
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import TaskError
from cleanai_ray.models import small_faster_rcnn
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.repair.images import is_held_back
from cleanai_ray.repair.outputs import divergences, log_probabilities
from cleanai_ray.tasks import find_task

pytest.importorskip("torchmetrics")
TASK, SIZE = "detection", 64
BUILD = {
    "two stages": lambda: small_faster_rcnn.build(CLASSES, SIZE, width=8),
    "yolo": lambda: yolo_detector.build(CLASSES),
}
OUTPUTS = {
    "two stages": {
        "rpn.head.cls_logits": 3,
        "rpn.head.bbox_pred": 12,
        "roi_heads.box_predictor.cls_score": CLASSES,
        "roi_heads.box_predictor.bbox_pred": 4 * CLASSES,
    },
    "yolo": {
        f"{kind}.{level}.1": width for kind, width in (("boxes", 4), ("classes", CLASSES - 1)) for level in range(2)
    },
}


@pytest.fixture(scope="module")
def data() -> tuple[list[Any], list[Any]]:
    """Batches to train on and to judge by."""
    images, _, boxes = canvases(148, size=SIZE, zoom=5)
    return batched(images[:128], boxes[:128], 16), batched(images[128:], boxes[128:], 20)


@pytest.fixture(scope="module", params=BUILD)
def trained(request: pytest.FixtureRequest, data: Any) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    model = follow_batches(BUILD[request.param]())
    cleanai.fine_tune(model, *data, task=TASK, epochs=5, optimizer="adamw", learning_rate=0.004, early_stopping=None)
    return request.param, model.eval()


def test_it_is_pruned_repaired_scored_and_saved(trained: Any, data: Any, tmp_path: Path) -> None:
    name, model = trained
    training, judging = data
    images = training[0][0]
    dense = cleanai.evaluate(model, judging, task=TASK)
    assert dense.value > 0.05
    assert dense == cleanai.evaluate(model, judging, task=TASK)  # the boxes that two stages draw are the same
    result = cleanai.prune(model, images[:1], training[:2], method="wanda", ratio=0.3, task=TASK)
    assert type(result.model) is type(model)
    assert 0.3 < result.plan.achieved["macs"] / result.plan.achieved["macs_dense"] < 0.8
    for layer, width in OUTPUTS[name].items():
        own = result.model.get_submodule(layer)
        assert own.weight.shape[0] == width
        assert own.weight.shape[1] < model.get_submodule(layer).weight.shape[1]
    pruned = cleanai.evaluate(result.model, judging, task=TASK)
    options = RepairOptions(compensation="closed_form", batch_norm="relative")
    repaired = repair(model, result, training[:4], options, task=TASK)
    assert cleanai.evaluate(repaired.model, judging, task=TASK).loss < pruned.loss
    cleanai.save(result, tmp_path)
    loaded = cleanai.load(tmp_path, BUILD[name]).eval()
    with torch.no_grad():
        for one, other in zip(loaded(list(images)), result.model(list(images)), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in ("boxes", "scores", "labels"))


def test_repair_chooses_by_boxes_and_classes(trained: Any, data: Any) -> None:
    """The chosen variant is the nearest to the dense detector by the distance of classes and boxes, and saves some."""
    _, model = trained
    training, _ = data
    result = cleanai.prune(model, training[0][0][:1], training[:2], method="magnitude", ratio=0.4, task=TASK)
    outcome = repair(model, result, training[:2], task=TASK)
    images = torch.cat([images for images, _ in training[:2]])
    held = [images[is_held_back(np.arange(len(images)))]]
    found = {}
    for name, other in (("none", result.model), ("chosen", outcome.model)):
        logs = [log_probabilities(find_task(TASK).network(each), held) for each in (model, other)]
        found[name] = float(divergences(logs[0], logs[1]).mean())
    untouched = next(each for each in outcome.tried if each["compensation"] == each["batch_norm"] == "none")
    assert untouched["kl"] == pytest.approx(found["none"], rel=1e-3)
    assert outcome.chosen["kl"] == pytest.approx(found["chosen"], rel=1e-3)
    assert found["chosen"] < 0.9 * found["none"]


def test_gradients_are_those_of_the_loss_of_both_stages(data: Any) -> None:
    torch.manual_seed(0)
    model = BUILD["two stages"]().eval()
    images, targets = data[0][0]
    found = cleanai.calibrate(model, [(images, targets)], gradients=True, task=TASK).gradients
    other = copy.deepcopy(model)
    for part in (other, other.rpn, other.roi_heads):
        part.training = True
    torch.manual_seed(0)
    sum(other(list(images), list(targets)).values()).backward()
    for name in OUTPUTS["two stages"]:
        expected = len(images) * other.get_parameter(f"{name}.weight").grad.abs().double()
        torch.testing.assert_close(found[f"{name}.weight"], expected, rtol=1e-3, atol=1e-6)
    assert not model.rpn.training


def test_what_is_no_detector_is_refused() -> None:
    task = find_task(TASK)
    with pytest.raises(TaskError, match="MaskRCNN predicts masks, too; allowed for task detection: boxes alone"):
        task.network(torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None))
    model = BUILD["yolo"]()
    model.raw_outputs = lambda images: (torch.zeros(1, 3, 5), torch.zeros(1, 5, 4))
    with pytest.raises(
        TaskError, match=r"raw_outputs\(\) of YoloDetector returns \[\[1, 3, 5\], \[1, 5, 4\]\]; allowed"
    ):
        task.network(model)(torch.zeros(1, 3, SIZE, SIZE))
    for returned, described in ((None, "NoneType"), (3, "int"), (torch.zeros(2, 3), r"\[2, 3\]"), ((1,), r"\['int'\]")):
        model.raw_outputs = lambda images, returned=returned: returned
        with pytest.raises(TaskError, match=rf"raw_outputs\(\) of YoloDetector returns {described}; allowed: class"):
            task.network(model)(torch.zeros(1, 3, SIZE, SIZE))


def write_coco(folder: Path, batches: dict[str, Any]) -> None:
    """Write canvases and their boxes as COCO has them."""
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": number, "name": str(number)} for number in range(1, CLASSES)]
    for split, (images, targets) in batches.items():
        (folder / split).mkdir()
        listed, annotations = [], []
        for number, (image, target) in enumerate(zip(images, targets, strict=True)):
            pixels = (image * 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            listed.append({"id": number, "file_name": f"{number}.png"})
            left, top, right, bottom = target["boxes"][0].tolist()
            box = {"image_id": number, "category_id": int(target["labels"][0])}
            annotations.append({**box, "bbox": [left, top, right - left, bottom - top]})
        content = {"images": listed, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "options"),
    [
        ("cleanai_ray.models.small_faster_rcnn:build", {"size": SIZE, "width": 4, "hidden": 16, "proposals": 20}),
        ("yolo_detector:build", {}),
    ],
    ids=BUILD,
)
def test_a_study_of_it_ends(factory: str, options: dict[str, Any], tmp_path: Path) -> None:
    images, _, boxes = canvases(60, size=SIZE, zoom=5)
    write_coco(tmp_path / "data", {"train": (images[:48], boxes[:48]), "val": (images[48:], boxes[48:])})
    model = {"factory": factory, "num_classes": CLASSES, "input_shape": [3, SIZE, SIZE], "options": options}
    study = parse_study(
        {
            "name": "small",
            "task": {"name": TASK},
            "model": {**model, "train": {"epochs": 2, "optimizer": "adamw", "learning_rate": 0.01, "batch_size": 16}},
            "data": {
                "name": "coco",
                "root": str(tmp_path / "data"),
                "batch_size": 16,
                "calibration": {"samples": 24, "shard_size": 12},
            },
            "pruning": {"round_to": None},
            "sweep": {"methods": ["taylor"], "ratios": [0.3], "modes": ["local"]},
            "repair": {"compensation": "closed_form", "batch_norm": "auto", "samples": 24},
            "finetune": {"epochs": 0},
            "evaluation": {"split": "val", "latency": None},
            "resources": {"calibration_actors": 1, "max_concurrent_trials": 1},
        }
    )
    failed, said = small.run(study, tmp_path / "run")
    assert failed == 0, said
    (row,) = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    assert row["metric"] == "mAP"
    assert row["score"] is not None
    assert row["macs"] < row["macs_dense"]
