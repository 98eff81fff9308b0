"""Images without a box, and detectors that find none: mean average precision as COCO defines it, or no score at all."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.batching import batches
from cleanai_ray.data.coco import Coco
from cleanai_ray.models import small_faster_rcnn, small_ssd
from cleanai_ray.stages.task_scores import score_task_model
from cleanai_ray.storage.image_schemas import roles_of_images
from cleanai_ray.tasks import find_task
from cleanai_ray.tasks.score import NoLabelError, TaskScore

pytest.importorskip("torchmetrics")
BOX, ELSEWHERE = [10.0, 10.0, 30.0, 30.0], [40.0, 40.0, 60.0, 60.0]
Entry = dict[str, Tensor]


def boxes(*listed: tuple[list[float], int]) -> Entry:
    corners = torch.tensor([box for box, _ in listed]).reshape(-1, 4)
    return {"boxes": corners, "labels": torch.tensor([label for _, label in listed], dtype=torch.int64)}


def found(*listed: tuple[list[float], int, float]) -> Entry:
    return {**boxes(*((box, label) for box, label, _ in listed)), "scores": torch.tensor([each[2] for each in listed])}


NONE, ONE = (found(), boxes()), (found((BOX, 1, 0.5)), boxes((BOX, 1)))
"""An image with nothing, and one whose only box is found: what was found, and what there is."""


def score(*images: tuple[Entry, Entry], size: int = 2) -> TaskScore:
    scorer = find_task("detection").new_scorer()
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        scorer.add(([answer for answer, _ in batch], torch.tensor(1.0)), [target for _, target in batch])
    result = scorer.result()
    assert isinstance(result, TaskScore)
    return result


@pytest.mark.parametrize(
    ("images", "value"),
    [
        pytest.param([ONE], 1.0, id="found"),
        pytest.param([ONE, NONE, NONE, NONE], 1.0, id="nothing there and nothing found does not count"),
        pytest.param([NONE, NONE, ONE], 1.0, id="a whole batch of nothing does not count"),
        pytest.param([(found(), boxes((BOX, 1)))], 0.0, id="nothing found"),
        pytest.param([(found(), boxes((BOX, 1))), NONE], 0.0, id="nothing found in any image"),
        # Precision is 1 of 2 wherever the wrong one, with the higher score, is counted first.
        pytest.param([ONE, (found((BOX, 1, 0.9)), boxes())], 0.5, id="a wrong one where nothing is"),
        pytest.param([ONE, (found((BOX, 1, 0.1)), boxes())], 1.0, id="a wrong one that comes after all right ones"),
        pytest.param([ONE, (found((BOX, 2, 0.9)), boxes())], 1.0, id="a wrong one of a class that is nowhere"),
        # Of the second class, whose only box is missed, precision is 0; the mean of 1 and 0.
        pytest.param([ONE, (found(), boxes((ELSEWHERE, 2)))], 0.5, id="the mean is over the classes that are there"),
    ],
)
def test_precision_is_that_of_the_classes_that_are_there(images: list[tuple[Entry, Entry]], value: float) -> None:
    assert score(*images).value == pytest.approx(value, abs=0.005)  # of recall, COCO looks at 101 places
    assert score(*images, size=1).value == pytest.approx(value, abs=0.005)


@pytest.mark.parametrize("answer", [found(), found((BOX, 1, 0.9))], ids=["nothing found", "something found"])
@pytest.mark.parametrize("is_crowd", [None, 1], ids=["no box", "a crowd alone"])
def test_without_any_box_there_is_no_precision(answer: Entry, is_crowd: int | None) -> None:
    target = boxes() if is_crowd is None else {**boxes((BOX, 1)), "iscrowd": torch.tensor([is_crowd])}
    with pytest.raises(NoLabelError, match=r"none of 2 images has a box that counts; at least 1 .* is needed"):
        score((answer, target), (answer, target))


def test_a_role_without_a_box_has_no_score_and_the_study_goes_on() -> None:
    number = 8
    decides = roles_of_images(range(number), 0.5)
    assert 0 < decides.sum() < number
    targets = [boxes() if each else boxes((BOX, 1)) for each in decides]

    class Blind(nn.Module):
        def forward(self, images: Any, targets: Any = None) -> Any:
            return {"loss": torch.tensor(0.5)} if self.training else [found()] * len(images)

    fake: Any = SimpleNamespace(
        task=find_task("detection"),
        device=torch.device("cpu"),
        study=SimpleNamespace(evaluation=SimpleNamespace(deciding_share=0.5)),
        scored_batches=lambda: [(torch.arange(number), torch.zeros(number, 3, 64, 64), targets)],
        selection_batches=lambda: [],
    )
    result, _ = score_task_model(fake, Blind())
    assert (result.value, result.num_samples, dict(result.by_role)) == (0.0, number, {})


@pytest.mark.parametrize("build", [small_ssd.build, small_faster_rcnn.build], ids=["one stage", "two stages"])
@pytest.mark.parametrize("targets", [[boxes(), boxes()], [boxes(), boxes((BOX, 1))]], ids=["no box", "one of two"])
def test_detectors_learn_from_images_without_a_box(build: Any, targets: list[Entry]) -> None:
    torch.manual_seed(0)
    model, task, images = build(3), find_task("detection"), torch.rand(2, 3, 64, 64)
    loss = task.loss(task.train_outputs(model.train(), images, targets), targets)
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    model.eval()
    with torch.no_grad():
        answers, loss = task.predict(model, images, targets)
    assert len(answers) == 2
    assert torch.isfinite(loss)


def test_coco_keeps_images_without_an_annotation(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    for number in (1, 2):
        Image.new("RGB", (20, 20)).save(tmp_path / "train" / f"{number}.png")
    annotation = {"id": 1, "image_id": 2, "category_id": 7, "bbox": [1, 2, 3, 4]}
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in (1, 2)],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [annotation],
    }
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    source = Coco(DataSection(name="coco", root=str(tmp_path)), (3, 20, 20))
    assert source.num_samples("train") == 2
    ((_, targets),) = batches(source.dataset("train"), [0, 1], 2)
    assert [list(target["boxes"].shape) for target in targets] == [[0, 4], [1, 4]]
    assert [target["labels"].tolist() for target in targets] == [[], [1]]
