"""Trials share the stages that they have in common, whatever they differ in, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import small_study as small

from cleanai_ray.config.study import Study, Trial, parse_study
from cleanai_ray.errors import PruningError
from cleanai_ray.executors import trial_work
from cleanai_ray.executors.local import LocalValue
from cleanai_ray.executors.trial_work import SweepInputs, run_group
from cleanai_ray.executors.writer import RunWriter
from cleanai_ray.registry import STAGES
from cleanai_ray.stages.base import Stage, TrialSetting
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.pipeline import group_trials, plan_stages, run_stages
from cleanai_ray.stages.state import TrialState
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.training.context import LocalContext

pytest.importorskip("onnxruntime")

CLOSED_FORM = {"compensation": "closed_form", "batch_norm": "none", "samples": 64}
STUDY: dict[str, Any] = {
    **small.SMALL,
    "sweep": {"methods": ["magnitude", "random"], "ratios": [0.3], "quantization": ["none", "int8", "bf16"]},
    "repair": {"compensation": "none", "batch_norm": "none"},
    "evaluation": {"samples": 100, "latency": None},
}


def groups(study: Study) -> list[list[str]]:
    return [
        [f"{trial.method}/{trial.quantization}" for trial in group] for group in group_trials(study, study.trials())
    ]


def test_trials_of_a_group_are_pruned_alike() -> None:
    kinds = ("none", "int8", "bf16")
    assert groups(parse_study(STUDY)) == [[f"{name}/{kind}" for kind in kinds] for name in ("magnitude", "random")]
    rounded = parse_study({**STUDY, "pruning": {"round_to": "auto"}})
    assert groups(rounded) == [
        ["magnitude/none", "magnitude/bf16"],
        ["magnitude/int8"],
        ["random/none", "random/bf16"],
        ["random/int8"],
    ]
    assert len(groups(parse_study({**STUDY, "pruning": {"round_to": 8}}))) == 2


def test_the_writer_knows_what_it_recorded_and_forgets_the_checkpoints_of_what_is_done(tmp_path: Path) -> None:
    study = parse_study({**STUDY, "output": {"save_models": "none"}})
    writer, run = RunWriter(str(tmp_path), study), RunDirectory(tmp_path)
    names = ["cache/checkpoints/a-1.pt", "cache/checkpoints/b-2/step1-x.pt", "cache/checkpoints/c-3.pt"]
    for name in names:
        run.write_bytes(name, b"weights")
    writer.begin_sweep([])
    assert all(run.exists(name) for name in names)
    for trial_id, status in (("a", "ok"), ("b", "failed")):
        writer.write_trial({"row": {"trial_id": trial_id, "status": status}}, "key")
    asked = [("a", "key"), ("b", "key"), ("c", "key")]
    assert writer.recorded(asked) == {"a": "ok", "b": "failed"}
    # In place of one that was killed in mid-sweep: it finds what succeeded for these inputs.
    assert RunWriter(str(tmp_path), study).recorded(asked) == {"a": "ok"}
    assert RunWriter(str(tmp_path), study).recorded([("a", "other")]) == {}
    writer.forget_checkpoints(["cache/checkpoints/a-1.pt", "cache/checkpoints/b-2.pt", "cache/checkpoints/d-4.pt"])
    assert [run.exists(name) for name in names] == [False, False, True]
    writer.begin_sweep(["a"])
    assert writer.recorded(asked) == {}


def sweep_of(settings: dict[str, Any], store: Any) -> SweepInputs:
    study = parse_study(settings)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    dense = prepare_dense(workspace)
    measures = {study.draws()[0]: LocalValue(small.measure_locally(workspace, dense))}
    return SweepInputs(study=study, dense_digest=dense.digest, dense=LocalValue(dense), measures=measures, store=store)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("quantize", [("none", "ok", None), ("int8", "failed", "no"), ("bf16", "ok", None)]),
        ("require_quantization", [("int8", "failed", "no"), ("none", "ok", None), ("bf16", "ok", None)]),
        ("prune", [(kind, "failed", "no") for kind in ("none", "int8", "bf16")]),
    ],
)
def test_a_failure_is_that_of_the_trials_it_concerns(monkeypatch, tmp_path, broken, expected) -> None:
    settings = {**STUDY, "finetune": {"epochs": 0}}
    inputs = sweep_of(settings, RunWriter(str(tmp_path), parse_study(settings)))
    if broken == "require_quantization":

        def require(names: Any) -> None:
            if "int8" in names:
                raise PruningError("no")

        monkeypatch.setattr(trial_work, broken, require)
    else:
        stage = STAGES.get(broken)
        works = stage.run

        def refuse(self: Stage, state: TrialState) -> TrialState:
            if broken == "prune" or self.trial.quantization == "int8":
                raise PruningError("no")
            return works(self, state)

        monkeypatch.setattr(stage, "run", refuse)
    trials = group_trials(inputs.study, inputs.study.trials())[0]
    found = list(run_group(inputs, trials, "cpu", lambda workspace: LocalContext()))
    assert [trial.trial_id for trial, _ in found] == [outcome.row["trial_id"] for _, outcome in found]
    rows = [outcome.row for _, outcome in found]
    assert [(row["quantization"], row["status"], row.get("error")) for row in rows] == expected


def test_two_recipes_of_one_pruned_model_prune_and_repair_once(monkeypatch) -> None:
    """Two studies that differ in fine-tuning alone: their trials share the states up to it."""
    plain = {**STUDY, "sweep": {"methods": ["magnitude"], "ratios": [0.3]}, "repair": CLOSED_FORM}
    studies = [parse_study({**plain, "finetune": {"epochs": 1, "learning_rate": rate}}) for rate in (0.01, 0.02)]
    workspace = open_workspace(studies[0].model_dump_json(), "cpu")
    dense = prepare_dense(workspace)
    ran: list[str] = []
    for name in STAGES.names():
        stage = STAGES.get(name)

        def count(self: Stage, state: TrialState, works: Any = stage.run, name: str = name) -> TrialState:
            ran.append(name)
            return works(self, state)

        monkeypatch.setattr(stage, "run", count)
    model = workspace.dense_model(dense.weights)
    setting = TrialSetting(
        workspace=workspace,
        dense_model=model,
        dense_logits=dense.logits,
        measures=small.measure_locally(workspace, dense),
        context=LocalContext(),
    )
    trials = [(trial, plan_stages(study, trial)) for study in studies for trial in study.trials()]
    found = [state for _, state in run_stages(setting, trials)]
    assert ran == ["prune", "repair", "finetune", "measure", "finetune", "measure"]
    for state in found:
        assert isinstance(state, TrialState)
    first, second = found
    assert first.pruned is second.pruned
    assert first.scores["repaired"] is second.scores["repaired"]
    assert {"prune", "repair"} <= set(first.seconds)
    assert not {"prune", "repair"} & set(second.seconds), "shared time counts in the first"


def test_trials_with_the_longest_common_beginnings_run_next_to_each_other(monkeypatch) -> None:
    """A trial that shares two stages with the first one is moved before another that shares only one."""
    study = parse_study(
        {**STUDY, "sweep": {"methods": ["magnitude"], "ratios": [0.3], "quantization": ["none", "int8", "bf16"]}}
    )
    key = STAGES.get("finetune").key.__func__  # type: ignore[attr-defined]

    def key_of(cls: type[Stage], study: Study, trial: Trial) -> Any:
        return [key(cls, study, trial), "other" if trial.quantization == "int8" else "same"]

    monkeypatch.setattr(STAGES.get("finetune"), "key", classmethod(key_of))
    (group,) = group_trials(study, study.trials())
    assert [trial.quantization for trial in group] == ["none", "bf16", "int8"]


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_study_fine_tunes_once_for_all_of_them(executor: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    sweep = {"methods": ["magnitude"], "ratios": [0.3]}
    study = parse_study({**STUDY, "sweep": {**sweep, "quantization": ["none", "int8"]}})
    if executor == "ray":
        request.getfixturevalue("ray_session")
    failed, said = small.run(study, tmp_path, executor)
    assert failed == 0, said
    assert "2 done, 0 running, 0 failed, of 2" in said
    first, second = (pq.read_table(tmp_path / schemas.HISTORY_FILE).filter(_of(trial)) for trial in study.trials())
    assert first.num_rows == 1
    # Of two trainings even the pace would be another.
    assert first.drop_columns("trial_id") == second.drop_columns("trial_id")
    rows = {row["quantization"]: row for row in pq.read_table(tmp_path / schemas.RESULTS_FILE).to_pylist()}
    for name in ("accuracy_pruned", "accuracy_finetuned"):
        assert rows["none"][name] == rows["int8"][name]
    # Times add up: what both share counts in the first.
    assert rows["none"]["seconds_finetune"] > 0
    assert rows["int8"]["seconds_finetune"] is None
    assert rows["int8"]["seconds_total"] == pytest.approx(
        rows["int8"]["seconds_quantize"] + rows["int8"]["seconds_evaluate"], rel=0.2
    )
    assert rows["none"]["accuracy_quantized"] is None
    assert rows["int8"]["accuracy"] == rows["int8"]["accuracy_quantized"]
    assert not list((tmp_path / "cache" / "checkpoints").glob("*"))


def _of(trial: Any) -> Any:
    import pyarrow.compute as pc

    return pc.field("trial_id") == trial.trial_id
