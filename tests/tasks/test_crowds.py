"""Boxes that count neither for nor against a detector: crowds of COCO, and difficult objects of VOC."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.tasks import find_task

pytest.importorskip("torchmetrics")
TASK = find_task("detection")
BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
LABELS = torch.tensor([1, 1])


def target(**more: Any) -> dict[str, Tensor]:
    return {"boxes": BOXES, "labels": LABELS, **more}


def precision(judged: dict[str, Tensor]) -> float:
    """The score of two exact detections, of which the second is the surer."""
    scorer = TASK.new_scorer()
    found = {"boxes": BOXES, "labels": LABELS, "scores": torch.tensor([0.5, 0.9])}
    scorer.add(([found], torch.tensor(1.0)), [judged])
    assert scorer.mean_loss() == (1.0, 1)
    return scorer.result().value


def test_a_detection_that_matches_one_is_not_counted() -> None:
    assert precision(target(iscrowd=torch.tensor([0, 1]))) == pytest.approx(1.0)
    # Dropped, it counts against the detector: the one that is there is the second of two.
    assert precision({"boxes": BOXES[:1], "labels": LABELS[:1]}) == pytest.approx(0.5)


class Recording(nn.Module):
    """A detector whose loss is the number of boxes that it is to learn."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if not self.training:
            return [target(scores=torch.ones(2)) for _ in images]
        assert targets is not None
        return {"boxes": torch.tensor(float(sum(len(each["labels"]) for each in targets)))}


@pytest.mark.parametrize(("crowds", "learned"), [([0, 1], 1.0), ([1, 1], 0.0), (None, 2.0)])
def test_it_is_not_learned(crowds: list[int] | None, learned: float) -> None:
    targets = [target() if crowds is None else target(iscrowd=torch.tensor(crowds))]
    model, images = Recording(), torch.zeros(1, 3, 8, 8)
    assert TASK.loss(TASK.train_outputs(model.train(), images, targets), targets) == learned
    assert TASK.predict(model.eval(), images, targets)[1] == learned
