"""The distributions by which detectors are compared: by hand, and from the heads of each kind of detector."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cleanai_ray.models import small_faster_rcnn, small_ssd
from cleanai_ray.repair.outputs import divergences, log_probabilities
from cleanai_ray.tasks import find_task
from cleanai_ray.tasks.detector_heads import heads_of
from cleanai_ray.tasks.judged_boxes import judged

TASK = find_task("detection")
ZEROS = [0.0, 0.0, 0.0, 0.0]


def head(probabilities: list[list[float]], boxes: list[list[float]]) -> tuple[Tensor, Tensor]:
    """One image: the probabilities of background and classes at each place, and the box there."""
    logits, numbers = torch.tensor(probabilities).log().T, torch.tensor(boxes).T
    return logits[None, ..., None, None], numbers[None, ..., None, None]


def distance(one: Any, other: Any) -> float:
    logs = [judged([each]).double().log_softmax(1) for each in (one, other)]
    return float(divergences(logs[0], logs[1]))


def test_a_shifted_box_counts_where_there_is_something() -> None:
    """A shift of 0.2 is two standard deviations: a divergence of 2 in one number of four, at p = 0.3; then the mean."""
    probabilities = [[0.7, 0.2, 0.1]]
    found = distance(head(probabilities, [ZEROS]), head(probabilities, [[0.2, 0.0, 0.0, 0.0]]))
    assert found == pytest.approx(0.3 * 2.0 / 4 / 2, rel=1e-4)
    nothing = [[1 - 1e-6, 5e-7, 5e-7]]
    assert distance(head(nothing, [ZEROS]), head(nothing, [[0.2, 0.2, 0.2, 0.2]])) < 1e-5


def test_classes_count_as_they_do_in_a_classifier() -> None:
    one, other = [0.7, 0.2, 0.1], [0.6, 0.1, 0.3]
    classes = sum(p * math.log(p / q) for p, q in zip(one, other, strict=True))
    something = 0.7 * math.log(0.7 / 0.6) + 0.3 * math.log(0.3 / 0.4)
    found = distance(head([one], [ZEROS]), head([other], [ZEROS]))
    assert found == pytest.approx((classes + something) / 2, rel=1e-5)


def test_places_are_averaged_and_heads_of_other_widths_join() -> None:
    same, shifted = head([[0.5, 0.5]] * 2, [ZEROS] * 2), head([[0.5, 0.5]] * 2, [ZEROS, [0.1] * 4])
    alone = distance(same, shifted)
    assert alone == pytest.approx(0.5 * 0.5 / 4, rel=1e-4)  # half of 1/2 at p = 0.5 at one of two places, halved
    wide = head([[0.5, 0.25, 0.25]] * 2, [ZEROS] * 2)
    logs = [judged([each, wide]).double().log_softmax(1) for each in (same, shifted)]
    assert float(divergences(logs[0], logs[1])) == pytest.approx(alone / 2, rel=1e-4)


def test_many_places_are_judged_by_some_from_the_first_to_the_last() -> None:
    boxes = torch.zeros(1, 4, 5000, 1, 1)
    logits = torch.zeros(1, 2, 5000, 1, 1)
    logits[:, 1] = torch.linspace(0, 1, 5000).reshape(1, -1, 1, 1)
    found = judged([(logits, boxes)])
    assert found.shape[2] == 2 * 2048
    assert found[0, 1, [0, 2047]].tolist() == [0.0, 1.0]


def detectors() -> dict[str, Any]:
    kinds = torchvision.models.detection
    small: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 3}

    def resized(name: str) -> nn.Module:
        model = getattr(kinds, name)(**small, min_size=64, max_size=64)
        return model

    return {
        "ssd": lambda: small_ssd.build(3),
        "faster_rcnn": lambda: small_faster_rcnn.build(3),
        "retinanet": lambda: resized("retinanet_resnet50_fpn"),
        "fcos": lambda: resized("fcos_resnet50_fpn"),
    }


@pytest.fixture(scope="module", params=detectors())
def detector(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    return request.param, detectors()[request.param]().eval()


@torch.no_grad()
def test_the_heads_say_what_the_detector_finds(detector: tuple[str, nn.Module]) -> None:
    """The best box of all places, decoded by hand from the heads, is one that the detector itself returns."""
    name, model = detector
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    heads = heads_of(model, images)
    assert [logits.shape[1] for logits, _ in heads] == {"faster_rcnn": [2, 3], "ssd": [3]}.get(name, [4])
    for logits, boxes in heads:
        assert logits.shape[2:] == boxes.shape[2:]
        assert (len(logits), *boxes.shape[:2]) == (2, 2, 4)
    if name == "faster_rcnn":
        return
    logits = heads[0][0][0, :, :, 0, 0]
    scores = logits.softmax(0)[1:] if name == "ssd" else logits[1:].sigmoid()
    model.score_thresh = -1.0
    best = float(model(list(images))[0]["scores"].max())
    # FCOS takes the square root of the product of two sigmoids, which is what the logits here are of.
    assert best == pytest.approx(float(scores.max()), rel=1e-4)


@torch.no_grad()
def test_the_distance_of_detectors_grows_with_their_boxes_alone(detector: tuple[str, nn.Module]) -> None:
    name, model = detector
    images = [torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))]
    reference = log_probabilities(TASK.network(model), images)
    layer = {
        "ssd": "head.regression_head.module_list.0",
        "faster_rcnn": "roi_heads.box_predictor.bbox_pred",
        "retinanet": "head.regression_head.bbox_reg",
        "fcos": "head.regression_head.bbox_reg",
    }[name]
    bias = model.get_submodule(layer).bias
    distances, before = [], bias.clone()
    for shift in (0.0, 0.5, 1.0):
        bias.copy_(before + shift)
        distances.append(float(divergences(reference, log_probabilities(TASK.network(model), images)).mean()))
    bias.copy_(before)
    assert distances[0] == pytest.approx(0.0, abs=1e-9)
    assert 0 < distances[1] < distances[2]


@torch.no_grad()
def test_a_detector_that_finds_less_everywhere_is_farther(detector: tuple[str, nn.Module]) -> None:
    """A shift that all classes have in common: a softmax over sigmoids would not see it."""
    name, model = detector
    if name in ("ssd", "faster_rcnn"):
        pytest.skip("has a class for the background")
    images = [torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))]
    reference = log_probabilities(TASK.network(model), images)
    bias = model.get_submodule("head.classification_head.cls_logits").bias
    before = bias.clone()
    bias += 3.0
    found = float(divergences(reference, log_probabilities(TASK.network(model), images)).mean())
    bias.copy_(before)
    assert found > 0.01
