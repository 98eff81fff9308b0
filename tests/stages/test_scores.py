"""Scores of a stage's model beside the dense model's kept logits, on image files of which some cannot be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.models import build_model
from cleanai_ray.stages.scores import ShareScore, StageScore, score_dense, score_share
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.training.part import ScoringPart

NUM_IMAGES, BATCH_SIZE = 18, 4
COMPARED = ScoringPart(compares=True)


@dataclass
class Opened:
    """A study on 18 evaluation images of three classes, its dense model, and another model."""

    workspace: Workspace
    dense: nn.Module
    model: nn.Module

    def path(self, number: int) -> Path:
        return Path(self.workspace.source.describe("val", number))

    def logits(self) -> KeptLogits:
        return score_dense(self.workspace, self.dense)[1]

    def share(self, dense: KeptLogits, share: tuple[int, int]) -> ShareScore:
        found = score_share(self.workspace, dense, self.model, COMPARED, share)
        assert found is not None
        return found

    def score(self, dense: KeptLogits) -> StageScore:
        return self.share(dense, (0, 1)).whole()

    def slowly(self, numbers: list[int]) -> dict[str, Any]:
        """What is to be found on some images, read and run one at a time."""
        dataset = self.workspace.source.dataset("val")
        found = {"agreed": 0, "lost": 0, "gained": 0, "divergence": 0.0, "loss": 0.0}
        with torch.no_grad():
            for number in numbers:
                image, label = dataset[number]
                p, q = (run(model, image).tolist() for model in (self.dense, self.model))
                first, second = p.index(max(p)), q.index(max(q))
                found["agreed"] += first == second
                found["lost"] += first == label != second
                found["gained"] += first != label == second
                found["divergence"] += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
                found["loss"] -= q[label] / len(numbers)
        return found


def run(model: nn.Module, image: Tensor) -> Tensor:
    return model(image[None]).double().log_softmax(1)[0]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    monkeypatch.setenv("CLEANAI_CACHE", str(tmp_path / "cache"))
    digits = load_digits()
    for split, part in (("train", slice(6, 12)), ("val", slice(0, 6))):
        for label in range(3):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for row in np.flatnonzero(digits.target == label)[part]:
                pixels = (digits.images[row] * 255 / 16).astype(np.uint8)
                Image.fromarray(pixels).convert("RGB").save(folder / f"{row}.png")
    study = parse_study(
        {
            "model": {"name": "resnet20", "num_classes": 3, "input_shape": [3, 8, 8]},
            "data": {
                "name": "image_folder",
                "root": str(tmp_path / "images"),
                "batch_size": BATCH_SIZE,
                "skip_unreadable": 2,
                "calibration": {"samples": 4},
            },
            "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
            "evaluation": {"split": "val", "latency": None},
        }
    )
    workspace = open_workspace(study.model_dump_json(), "cpu")
    models = [build_model(study.model, seed=seed).eval() for seed in range(2)]
    for model in models:
        # Fresh weights of a residual network answer nearly the same for every image.
        model.fc.weight.data *= 30
    return Opened(workspace, *models)


def check(opened: Opened, found: StageScore, numbers: list[int]) -> None:
    expected, comparison = opened.slowly(numbers), found.comparison
    assert comparison is not None
    assert found.accuracy.num_samples == comparison.num_samples == len(numbers)
    assert sum(comparison.class_correct) == sum(found.accuracy.class_correct)
    assert found.accuracy.loss == pytest.approx(expected.pop("loss"), rel=1e-4)
    for name, value in expected.items():
        assert getattr(comparison, name) == pytest.approx(value, rel=1e-4), name


def test_every_number_is_that_of_a_loop_over_images(opened: Opened) -> None:
    everything = list(range(NUM_IMAGES))
    slow = opened.slowly(everything)
    assert 0 < slow["agreed"] < NUM_IMAGES
    assert slow["lost"] + slow["gained"] > 0
    check(opened, opened.score(opened.logits()), everything)


def test_an_unreadable_image_in_the_middle_shifts_no_row(opened: Opened) -> None:
    opened.path(5).write_bytes(b"")
    dense = opened.logits()
    assert dense.numbers.tolist() == [number for number in range(NUM_IMAGES) if number != 5]
    check(opened, opened.score(dense), dense.numbers.tolist())


def test_both_models_are_scored_on_the_images_that_both_could_read(opened: Opened) -> None:
    """A file that one process cannot read may be there for the next, and the other way round."""
    content = {number: opened.path(number).read_bytes() for number in (5, 8, 9, 10, 11)}
    opened.path(5).write_bytes(b"")
    dense = opened.logits()
    opened.path(5).write_bytes(content[5])
    check(opened, opened.score(dense), dense.numbers.tolist())
    opened.path(10).unlink()
    found = opened.score(dense)
    opened.path(10).write_bytes(content[10])
    check(opened, found, [number for number in range(NUM_IMAGES) if number not in (5, 10)])
    # A batch of which the dense model has no logits at all.
    third = np.isin(dense.numbers, (8, 9, 10, 11))
    fewer = KeptLogits(numbers=dense.numbers[~third], values=dense.values[~third])
    check(opened, opened.score(fewer), fewer.numbers.tolist())


def test_two_shares_give_the_numbers_of_one(opened: Opened) -> None:
    opened.path(5).write_bytes(b"")
    dense = opened.logits()
    whole, shares = opened.score(dense), [opened.share(dense, (rank, 2)) for rank in range(2)]
    # Five batches of 4, 3 (one is unreadable), 4, 4 and 2: the first three, and the rest.
    assert [share.whole().accuracy.num_samples for share in shares] == [11, 6]
    both = (shares[0] + shares[1]).whole()
    check(opened, both, dense.numbers.tolist())
    assert both.comparison is not None
    assert whole.comparison is not None
    assert both.comparison.class_correct_dense == whole.comparison.class_correct_dense
    assert both.comparison.confidence_dense.count == whole.comparison.confidence_dense.count
    assert both.comparison.divergence == pytest.approx(whole.comparison.divergence, rel=1e-12)


def test_a_share_of_which_nothing_can_be_read_has_no_score(opened: Opened) -> None:
    dense = opened.logits()
    for number in (16, 17):
        opened.path(number).unlink()
    nothing = opened.share(dense, (4, 5))
    assert (nothing.accuracy, nothing.comparison) == (None, None)
    with pytest.raises(EvaluationError, match="there are 0 images to evaluate on"):
        nothing.whole()
    first = opened.share(dense, (0, 5))
    assert (first + nothing).whole().accuracy == (nothing + first).whole().accuracy == first.accuracy
    assert score_share(opened.workspace, dense, opened.model, COMPARED, (5, 6)) is None, "there are five batches"


def test_the_study_says_in_which_precision(opened: Opened) -> None:
    section = opened.workspace.study.evaluation.model_copy(update={"precision": "bfloat16"})
    study = opened.workspace.study.model_copy(update={"evaluation": section})
    roles, source = opened.workspace.roles, opened.workspace.source
    narrow = Opened(
        Workspace(study=study, source=source, roles=roles, device=torch.device("cpu")), opened.dense, opened.model
    )
    exact, rounded = opened.logits().values, narrow.logits().values
    assert (rounded == torch.from_numpy(rounded).bfloat16().float().numpy()).all()
    assert not (exact == torch.from_numpy(exact).bfloat16().float().numpy()).all()
    np.testing.assert_allclose(rounded, exact, rtol=0.1, atol=0.1 * np.abs(exact).max())
    dense = opened.logits()
    assert narrow.score(dense).accuracy.loss != opened.score(dense).accuracy.loss
