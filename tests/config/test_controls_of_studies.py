"""Controls in a study file: which trials they are, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.stages.train_anew import anew_section

ALL = ["scratch", "narrow", "dense_finetuned", "torch_pruning"]
DOCUMENT: dict[str, Any] = {
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 4}},
    "data": {"name": "digits", "calibration": {"samples": 50, "seed": [0, 1, 2]}},
    "sweep": {
        "methods": ["coverage", "random"],
        "budgets": [{"macs": 0.7}, {"macs": 0.5}],
        "modes": ["local", "global"],
        "seeds": [0, 1],
        "method_options": {},
    },
    "finetune": {"epochs": 1},
}


def study_with(controls: Any, **sections: Any) -> Study:
    document = copy.deepcopy(DOCUMENT)
    document["sweep"]["controls"] = controls
    for name, values in sections.items():
        document[name] = {**document[name], **values}
    return parse_study(document)


def controls_of(study: Study) -> list[Any]:
    return [trial for trial in study.trials() if trial.control is not None]


def test_controls_come_after_the_trials_which_keep_their_names() -> None:
    plain = study_with(None).trials()
    study = study_with({"kinds": ALL})
    assert study.trials()[: len(plain)] == plain
    # Two budgets and two seeds; of torch-pruning also three draws; the fine-tuned dense model knows no budget.
    kinds = [trial.control.kind for trial in controls_of(study)]
    assert kinds == ["scratch"] * 4 + ["narrow"] * 4 + ["dense_finetuned"] * 2 + ["torch_pruning"] * 12
    names = [trial.trial_id for trial in study.trials()]
    assert len(set(names)) == len(names)
    assert "control" not in plain[0].identity
    assert "control" not in plain[0].request


def test_controls_do_not_train_between_steps() -> None:
    given = {"finetune": {"between_steps": 2}, "sweep": {"steps": [1, 3], "controls": {"kinds": ["scratch"]}}}
    with pytest.raises(StudyError, match=r"finetune.between_steps is 2, which controls do not get; allowed .*: 0"):
        parse_study({**DOCUMENT, **{name: {**DOCUMENT[name], **fields} for name, fields in given.items()}})


def test_a_control_has_the_widths_that_the_file_names() -> None:
    named = {"kinds": ["scratch", "narrow"], "amounts": [0.5], "widths_of": "random", "mode": "local"}
    scratch, _, narrow, _ = controls_of(study_with(named))
    assert (scratch.method, scratch.coverage_metric, scratch.mode, scratch.budget.limit) == (
        "random",
        None,
        "local",
        0.5,
    )
    assert (narrow.mode, narrow.budget.limit, narrow.steps) == ("local", 0.5, 1)
    first = controls_of(study_with({"kinds": ["scratch"]}))[0]
    assert (first.method, first.coverage_metric, first.mode) == ("coverage", "normalized_mean", "global")
    assert first.label == "coverage/normalized_mean, from scratch"
    # The plan of random differs from draw to draw: the widths are those of the trial of the first draw.
    trial = next(one for one in study_with(named).trials() if (one.method, one.budget.limit) == ("random", 0.5))
    assert scratch.scoring_seed == trial.scoring_seed


def test_controls_read_the_first_draw_but_for_recalibration() -> None:
    draws = {(trial.control.kind, trial.calibration_seed) for trial in controls_of(study_with({"kinds": ALL}))}
    others = {(kind, 0) for kind in ALL if kind != "torch_pruning"}
    assert draws == others | {("torch_pruning", seed) for seed in (0, 1, 2)}


@pytest.mark.parametrize(("compute", "epochs"), [("flops", 9), ("epochs", 5)])
def test_training_anew_costs_what_dense_training_and_fine_tuning_cost(compute: str, epochs: int) -> None:
    """Of half the MACs: 4 dense epochs are worth 8, and 1 of the pruned model is 1; or simply 4 + 1."""
    study = study_with({"kinds": ["scratch"], "compute": compute})
    first, second = controls_of(study)[:2]
    section = anew_section(study, first, macs_share=0.5, tuned=1.0)
    assert section.epochs == epochs
    assert study.model.train is not None
    seeds = {section.seed, anew_section(study, second, macs_share=0.5, tuned=1.0).seed, study.model.train.seed}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("controls", "sections", "sentence"),
    [
        ({"kinds": []}, {}, "sweep.controls.kinds is []; allowed: a list of at least 1 entry"),
        ({"kinds": ["narrow", "narrow"]}, {}, "sweep.controls.kinds holds narrow twice"),
        ({"kinds": ["dense"]}, {}, "sweep.controls.kinds"),
        (
            {"kinds": ["scratch"]},
            {"model": {"train": None}},
            "sweep.controls.kinds holds scratch, and model.train is null; needed: model.train",
        ),
        (
            {"kinds": ["dense_finetuned", "narrow"]},
            {"model": {"weights": "w.pt"}},
            "sweep.controls.kinds holds narrow, and model.weights is 'w.pt'; needed: null",
        ),
        (
            {"kinds": ["dense_finetuned"]},
            {"finetune": {"epochs": 0}},
            "sweep.controls.kinds holds dense_finetuned, and finetune.epochs is 0; needed: at least 1",
        ),
        (
            {"kinds": ["torch_pruning"]},
            {"sweep": {"budgets": [{"latency": 0.5}], "controls": {"kinds": ["torch_pruning"]}}},
            "which torch-pruning cannot meet; allowed: budgets of macs, params or size_mb",
        ),
        (
            {"kinds": ["narrow"], "amounts": [0.6]},
            {},
            "sweep.controls.amounts holds 0.6; allowed: those of the sweep, 0.7, 0.5",
        ),
        (
            {"kinds": ["scratch"], "widths_of": "coverage"},
            {},
            "widths_of: 'coverage' is not a method of the sweep; allowed: coverage/normalized_mean, random",
        ),
        (
            {"kinds": ["scratch"], "mode": "isomorphic"},
            {},
            "sweep.controls.mode is isomorphic; allowed: those of sweep.modes, local, global",
        ),
        ({"kinds": ["narrow"], "seeds": [0]}, {}, "sweep.controls.seeds"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(controls: Any, sections: Any, sentence: str) -> None:
    with pytest.raises(StudyError) as caught:
        study_with(controls, **sections)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_single_methods_can_have_seeds_of_their_own() -> None:
    study = study_with(None, sweep={"method_seeds": {"random": [3, 4, 5, 6, 7]}})
    seeds = {name: {trial.seed for trial in study.trials() if trial.method == name} for name in study.sweep.methods}
    assert seeds == {"coverage": {0, 1}, "random": {3, 4, 5, 6, 7}}
    with pytest.raises(StudyError, match=r"sweep.method_seeds: 'taylor' is not among sweep.methods"):
        study_with(None, sweep={"method_seeds": {"taylor": [0]}})
    with pytest.raises(StudyError, match=r"sweep.method_seeds.random holds 1 twice; allowed: each value once"):
        study_with(None, sweep={"method_seeds": {"random": [1, 1]}})
