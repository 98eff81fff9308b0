"""The key `task` of a study file: what it allows in the other sections, and what it refuses in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import DataError, StudyError
from cleanai_ray.stages.planning import check_study


def document(**changes: Any) -> dict[str, Any]:
    base = {
        "task": {"name": "segmentation"},
        "model": {"factory": "cleanai_ray.models.small_unet:build", "num_classes": 3, "input_shape": [1, 16, 16]},
        "data": {"name": "image_masks"},
        "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
    }
    return {**base, **changes}


def test_classification_is_the_default() -> None:
    study = parse_study({**document(), "task": {}, "data": {"name": "digits"}})
    assert study.task.name == "classification"
    assert study.task.is_classification
    assert not parse_study(document()).task.is_classification


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"name": "depth"}}, "task.name: 'depth' is not a task"),
        (
            {"sweep": {"methods": ["magnitude"], "ratios": [0.3], "quantization": ["none", "int8"]}},
            "sweep.quantization is int8; allowed for task segmentation: none",
        ),
        (
            {"evaluation": {"precision": "bfloat16"}},
            "evaluation.precision is bfloat16; allowed for task segmentation: float32",
        ),
        (
            {"task": {"name": "language_modelling"}},
            r"model.input_shape is \[1, 16, 16\]; allowed for task language_modelling: 1 number",
        ),
        (
            {"task": {"name": "regression"}, "finetune": {"epochs": 1, "distillation": {}}},
            "finetune.distillation is set; allowed for task regression: null",
        ),
        (
            {"task": {"name": "regression"}, "finetune": {"epochs": 1, "label_smoothing": 0.1}},
            "finetune.label_smoothing is 0.1; allowed for task regression: 0",
        ),
        (
            {"model": {**document()["model"], "expected_accuracy": 0.5}},
            "model.expected_accuracy is 0.5; allowed for task segmentation: null",
        ),
        (
            {
                "task": {"name": "multilabel_classification", "metric": "collections:Counter"},
                "finetune": {"epochs": 1, "num_workers": 2},
            },
            "finetune.num_workers is 2; allowed for task.metric 'collections:Counter', whose objects have no "
            "merge_state that can put them together: 1 or auto",
        ),
    ],
)
def test_what_does_not_suit_a_task_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(document(**changes))


def test_a_task_with_a_metric_of_its_own_is_compared_by_that() -> None:
    study = parse_study({**document(), "task": {"metric": "builtins:divmod"}, "data": {"name": "digits"}})
    assert study.task.name == "classification"
    assert not study.task.is_classification
    distilled = {"epochs": 1, "distillation": {}, "label_smoothing": 0.1}
    for name in ("classification", "multilabel_classification"):
        own = document(task={"name": name, "metric": "builtins:divmod"}, finetune=distilled)
        assert parse_study(own).task.title == f"{name} with a metric of its own"


def test_several_processes_score_by_a_metric_that_is_a_function() -> None:
    finetune = {"epochs": 1, "num_workers": 2}
    own = document(task={"name": "segmentation", "metric": "torch.nn.functional:mse_loss"}, finetune=finetune)
    assert parse_study(own).finetune.num_workers == 2


def test_one_process_scores_by_objects_that_do_not_merge_where_the_number_is_auto() -> None:
    finetune = {"epochs": 1, "num_workers": "auto"}
    counted = {"name": "segmentation", "metric": "collections:Counter"}
    assert parse_study(document(task=counted, finetune=finetune)).most_workers_per_trial == 1
    assert parse_study(document(finetune=finetune)).most_workers_per_trial > 1


def test_detectors_keep_their_own_loss() -> None:
    with pytest.raises(StudyError, match=r"task.loss is 'builtins:divmod'; allowed for task detection: null"):
        parse_study(document(task={"name": "detection", "loss": "builtins:divmod"}))


def test_a_classifier_reads_images() -> None:
    model = {"name": "resnet20", "input_shape": [8]}
    with pytest.raises(StudyError, match=r"model.input_shape is \[8\]; allowed for task classification: 3 numbers"):
        parse_study(document(task={}, model=model, data={"name": "digits"}))


def test_a_data_set_of_another_task_is_refused_with_those_that_fit() -> None:
    with pytest.raises(DataError, match=r"data.name is 'digits'; allowed for task segmentation: image_masks"):
        check_study(parse_study(document(data={"name": "digits"})))
