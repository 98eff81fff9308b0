"""The order of a trial's stages, and a stage of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import small_study as small
from new_files import new_file
from safetensors.torch import load_file

from cleanai_ray.config.study import parse_study
from cleanai_ray.registry import STAGES
from cleanai_ray.stages.pipeline import plan_stages

SETTINGS: dict[str, Any] = {
    **small.SMALL,
    "sweep": {"methods": ["magnitude"], "ratios": [0.3], "steps": [2]},
    "evaluation": {"samples": 50, "latency": None},
}


def planned(**sections: Any) -> list[tuple[str, int, str | None, bool]]:
    study = parse_study({**SETTINGS, **sections})
    trial = study.trials()[-1]
    return [
        (step.stage.__name__, step.number, step.scored_as, step.compares and step.scored_as is not None)
        for step in plan_stages(study, trial)
    ]


def test_all_steps_come_at_once_where_nothing_is_trained_between_them() -> None:
    assert planned() == [
        ("Prune", 2, "pruned", False),
        ("Repair", 2, "repaired", False),
        ("FineTune", 2, "finetuned", True),
        ("Measure", 2, None, False),
    ]


def test_stages_that_repeat_follow_every_step_where_something_is_trained_between_them() -> None:
    assert planned(finetune={"epochs": 0, "between_steps": 1}) == [
        ("Prune", 1, None, False),
        ("Repair", 1, None, False),
        ("FineTune", 1, None, False),
        ("Prune", 2, "pruned", False),
        ("Repair", 2, "repaired", True),
        ("Measure", 2, None, False),
    ]


def test_the_model_before_quantisation_is_compared_too() -> None:
    sweep = {**SETTINGS["sweep"], "quantization": ["none", "bf16"]}
    repair = {"compensation": "none", "batch_norm": "none"}
    assert planned(sweep=sweep, repair=repair, finetune={"epochs": 0}) == [
        ("Prune", 2, "pruned", True),
        ("Quantize", 2, "quantized", True),
        ("Measure", 2, None, False),
    ]


STAGE = '''
import copy
from dataclasses import replace

import torch

from cleanai_ray.registry import STAGES
from cleanai_ray.stages.base import Stage


@STAGES.register("halve")
class Halve(Stage):
    """Half of every weight of the classifier."""

    position = 150
    timed_as = "halve"

    @classmethod
    def key(cls, study, trial):
        """Return nothing: it depends on the state alone."""
        return None

    def run(self, state):
        """Return the state with a model that gives half the logits."""
        model = copy.deepcopy(state.model)
        with torch.no_grad():
            for parameter in model.fc.parameters():
                parameter.mul_(0.5)
        return replace(state, model=model)
'''


def test_a_stage_is_one_new_file(tmp_path: Path) -> None:
    settings = {**SETTINGS, "repair": {"compensation": "none", "batch_norm": "none"}, "finetune": {"epochs": 0}}
    failed, said = small.run(parse_study(settings), tmp_path / "plain")
    assert failed == 0, said
    with new_file(STAGES, "halve", STAGE, tmp_path / "stages"):
        study = parse_study({**settings, "output": {"save_models": "all"}})
        names = [step.stage.__name__ for step in plan_stages(study, study.trials()[0])]
        assert names == ["Prune", "Halve", "Measure"]
        failed, said = small.run(study, tmp_path / "halved")
        assert failed == 0, said
    (plain,), (halved,) = (small.timeless_table(tmp_path / name) for name in ("plain", "halved"))
    assert halved["accuracy_pruned"] == plain["accuracy_pruned"]
    saved = list((tmp_path / "halved" / "models").iterdir())
    assert [path.name for path in saved] == [halved["trial_id"]]
    weights = load_file(saved[0] / "weights.safetensors")
    # The classifier reads what is left of the last group; its bias is never pruned.
    dense = load_file(tmp_path / "halved" / "cache" / "dense.safetensors")
    assert weights["fc.bias"].tolist() == (dense["fc.bias"] * 0.5).tolist()
