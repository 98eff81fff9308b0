"""The order of a trial's stages, and a stage of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_study as small
import torch
from new_files import new_file
from safetensors.torch import load, load_file

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.registry import STAGES
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.fingerprints import trial_key
from cleanai_ray.stages.outcome import run_trial
from cleanai_ray.stages.pipeline import plan_stages
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.training.context import LocalContext

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


def test_a_plugin_before_prune_is_refused(tmp_path: Path) -> None:
    study = parse_study(SETTINGS)
    with (
        new_file(STAGES, "halve", STAGE.replace("position = 150", "position = 50"), tmp_path / "stages"),
        pytest.raises(StudyError) as caught,
    ):
        plan_stages(study, study.trials()[0])
    assert all(word in str(caught.value) for word in ("Halve", "50", "100", "prune"))


def test_a_trial_with_a_stage_of_a_plugin_is_another_trial_than_without(tmp_path: Path) -> None:
    study = parse_study(SETTINGS)
    (trial,) = study.trials()
    without = trial_key(study, trial, "dense")
    keys = set()
    for key in ("None", "1"):
        with new_file(STAGES, "halve", STAGE.replace("return None", f"return {key}"), tmp_path / key):
            keys.add(trial_key(study, trial, "dense"))
    assert len({without, *keys}) == 3
    assert trial_key(study, trial, "dense") == without


@pytest.mark.parametrize(
    ("added", "fact"),
    [('costs={**state.costs, "energy": 1.0}', "energy"), ('history=({"epoch": 1, "heat": 2.0},)', "heat")],
)
def test_a_column_that_a_plugin_makes_up_fails_the_trial_in_a_sentence(added: str, fact: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "repair": {"compensation": "none", "batch_norm": "none"}, "finetune": {"epochs": 0}}
    source = STAGE.replace("position = 150", "position = 550").replace("model=model)", f"model=model, {added})")
    with new_file(STAGES, "halve", source, tmp_path / "stages"):
        failed, said = small.run(parse_study(settings), tmp_path / "run")
    assert failed == 1, said
    (row,) = small.timeless_table(tmp_path / "run")
    assert row["status"] == "failed"
    assert f"has no column '{fact}'" in row["error"]


def test_training_of_the_dense_model_begins_with_the_weights_that_are_given(tmp_path: Path) -> None:
    first = prepare_dense(open_workspace(parse_study({**SETTINGS}).model_dump_json(), "cpu"))
    (tmp_path / "w.safetensors").write_bytes(first.weights)
    train = {"epochs": 1, "learning_rate": 1e-6, "weight_decay": 0}
    model = {**SETTINGS["model"], "weights": str(tmp_path / "w.safetensors"), "train": train}
    study = parse_study({**SETTINGS, "model": model})
    second = prepare_dense(open_workspace(study.model_dump_json(), "cpu"))
    assert len(second.history) == 1
    before, after = load(first.weights), load(second.weights)
    moved = [name for name in before if not torch.equal(before[name], after[name]) and name.endswith("conv1.weight")]
    assert moved  # a little
    assert all(torch.allclose(before[name], after[name], atol=1e-3) for name in moved)


def test_fine_tuning_after_a_plugin_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    """A model that a plug-in changed must not go on from the checkpoint of one that it did not change."""
    names: list[str] = []

    class Names:
        def save(self, content: bytes, part: str = "") -> None:
            names.append(part)

        def load(self, part: str = "") -> bytes | None:
            return None

    study = parse_study({**SETTINGS, "finetune": {"epochs": 1, "save_every_n_epochs": 1}})
    workspace = open_workspace(study.model_dump_json(), "cpu")
    dense = prepare_dense(workspace)
    measures, model = small.measure_locally(workspace, dense), workspace.dense_model(dense.weights)
    context = LocalContext(checkpoints=Names())
    run_trial(workspace, study.trials()[0], dense, model, measures, context)
    own = set(names)
    with new_file(STAGES, "halve", STAGE, tmp_path / "stages"):
        run_trial(workspace, study.trials()[0], dense, model, measures, context)
    assert own == {""}
    assert len(set(names)) == 2
