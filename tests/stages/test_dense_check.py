"""A dense model that is far from what it is said to be stops the study, or is warned of."""

from __future__ import annotations

import json

import pytest
import torch

from cleanai_ray.config.sections import ModelSection
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import ModelError
from cleanai_ray.models.reported import reported_accuracy
from cleanai_ray.stages.dense_check import check_dense
from cleanai_ray.tasks.accuracy import Accuracy


def scored(correct: int, total: int) -> Accuracy:
    return Accuracy(correct / total, 1.0, 0.5, total, (correct,), (total,))


def study(**model):
    return parse_study(
        {
            "model": {"name": "resnet20", "input_shape": [1, 8, 8], **model},
            "data": {"name": "digits"},
            "sweep": {"methods": ["random"], "ratios": [0.5]},
        }
    )


def test_a_dense_model_far_below_what_is_expected_stops_the_study():
    with pytest.raises(ModelError) as caught:
        check_dense(study(expected_accuracy=0.892), scored(2580, 10_000))
    assert "scores 25.80% on 10000 images, and model.expected_accuracy is 0.892; nothing was pruned" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("correct", "total", "expected", "stops"),
    [
        (9000, 10_000, 0.9, False),
        (8600, 10_000, 0.9, False),  # within five points
        (8350, 10_000, 0.9, True),  # 83.5 %; the interval reaches to 84.2 %
        (33, 40, 0.9, False),  # 82.5 % of few images; the interval reaches to 91 %
        (20, 40, 0.9, True),  # 50 %; the interval reaches to 65 %
        (10_000, 10_000, 0.9, False),
        (1, 10_000, None, False),
    ],
)
def test_the_choice_of_images_is_allowed_for(correct, total, expected, stops):
    asked = study(expected_accuracy=expected)
    if stops:
        with pytest.raises(ModelError):
            check_dense(asked, scored(correct, total))
    else:
        assert check_dense(asked, scored(correct, total)) == ()


@pytest.mark.parametrize(
    ("stated", "value"),
    [
        ({"best_acc1": torch.tensor(71.5)}, 0.715),
        ({"val_accuracy": 0.9}, 0.9),
        ({"callbacks": {"ModelCheckpoint": {"monitor": "val/acc", "best_model_score": torch.tensor(0.8)}}}, 0.8),
        ({"callbacks": {"ModelCheckpoint": {"monitor": "val_loss", "best_model_score": torch.tensor(0.8)}}}, None),
        ({"best_acc1": -1.0}, None),
        ({"epoch": 90}, None),
    ],
)
def test_a_checkpoint_states_its_accuracy(tmp_path, stated, value):
    torch.save({"state_dict": {"x": torch.ones(2)}, **stated}, tmp_path / "w.pt")
    found = reported_accuracy(ModelSection(name="resnet20", weights=str(tmp_path / "w.pt")))
    assert (None if found is None else found.accuracy) == (None if value is None else pytest.approx(value))


def test_less_than_half_of_what_a_checkpoint_states_is_warned_of(tmp_path):
    torch.save({"state_dict": {"x": torch.ones(2)}, "best_acc1": 80.0}, tmp_path / "w.pt")
    asked = study(weights=str(tmp_path / "w.pt"))
    assert check_dense(asked, scored(40, 100)) == ()
    (warning,) = check_dense(asked, scored(39, 100))
    assert f"scores 39.00%, less than half of the 80.00% that {tmp_path / 'w.pt'} (best_acc1) states" in warning


CARD = """---
license: mit
model-index:
- name: ours
  results:
  - task: {type: image-classification}
    metrics:
    - {type: loss, value: 0.2}
    - {type: accuracy, value: 0.93}
---
# Ours
"""


@pytest.mark.parametrize("file", ["README.md", "all_results.json", "nothing", "damaged"])
def test_a_folder_states_its_accuracy_on_its_card_or_in_its_results(tmp_path, file):
    if file == "README.md":
        (tmp_path / file).write_text(CARD)
    elif file == "damaged":
        (tmp_path / "README.md").write_text("---\n[\n---\n")
        (tmp_path / "all_results.json").write_text("[1")
    elif file != "nothing":
        (tmp_path / file).write_text(json.dumps({"eval_accuracy": 0.93, "eval_loss": 0.2}))
    section = ModelSection(name=f"hf:{tmp_path}", weights="pretrained", num_classes=3, input_shape=(3, 32, 32))
    found = reported_accuracy(section)
    assert (None if found is None else found.accuracy) == (0.93 if "." in file else None)


def test_torchvisions_weights_have_a_record():
    found = reported_accuracy(ModelSection(name="resnet50", weights="pretrained", num_classes=1000))
    assert found is not None
    assert found.accuracy == pytest.approx(0.80858)  # IMAGENET1K_V2
    assert reported_accuracy(ModelSection(name="resnet50", weights="pretrained", num_classes=10)) is None
    assert reported_accuracy(ModelSection(name="resnet50", num_classes=1000)) is None
