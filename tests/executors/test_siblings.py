"""Trials that differ in quantisation alone share what comes before it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import distributed.conftest as small
import pyarrow.parquet as pq
import pytest

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import PruningError
from cleanai_ray.executors.ray import trial_work
from cleanai_ray.executors.ray.trial_work import SweepInputs, carry_out
from cleanai_ray.executors.ray.writer import RunWriter
from cleanai_ray.stages.siblings import group_siblings
from cleanai_ray.stages.trial import prepare_dense
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.training.context import LocalContext

pytest.importorskip("onnxruntime")

STUDY: dict[str, Any] = {
    **small.SMALL,
    "sweep": {"methods": ["magnitude", "random"], "ratios": [0.3], "quantization": ["none", "int8", "bf16"]},
    "repair": {"compensation": "none", "batch_norm": "none"},
    "evaluation": {"samples": 100, "latency": None},
}


def groups(study: Study) -> list[list[str]]:
    return [
        [f"{trial.method}/{trial.quantization}" for trial in group] for group in group_siblings(study, study.trials())
    ]


def test_siblings_are_those_that_are_pruned_alike() -> None:
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
        writer.write({"row": {"trial_id": trial_id, "status": status}}, "key", None, None)
    asked = [("a", "key"), ("b", "key"), ("c", "key")]
    assert writer.recorded(asked) == {"a": "ok", "b": "failed"}
    # In place of one that was killed in mid-sweep: it finds what succeeded for these inputs.
    assert RunWriter(str(tmp_path), study).recorded(asked) == {"a": "ok"}
    assert RunWriter(str(tmp_path), study).recorded([("a", "other")]) == {}
    writer.forget_checkpoints(["cache/checkpoints/a-1.pt", "cache/checkpoints/b-2.pt", "cache/checkpoints/d-4.pt"])
    assert [run.exists(name) for name in names] == [False, False, True]
    writer.begin_sweep(["a"])
    assert writer.recorded(asked) == {}


def trial_of(arguments: Any) -> str:
    """The quantisation that is asked for, in the arguments of either function."""
    return arguments[0][0] if len(arguments) == 1 else arguments[1].quantization


@pytest.mark.ray
@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ("finish_trial", [("none", "ok", None), ("int8", "failed", "no"), ("bf16", "ok", None)]),
        ("require_quantization", [("int8", "failed", "no"), ("none", "ok", None), ("bf16", "ok", None)]),
        ("run_float_stages", [(kind, "failed", "no") for kind in ("none", "int8", "bf16")]),
    ],
)
def test_a_failure_is_that_of_the_trials_it_concerns(ray_session, monkeypatch, broken, expected) -> None:
    import ray

    study = parse_study({**STUDY, "finetune": {"epochs": 0}})
    workspace = open_workspace(study.model_dump_json(), "cpu")
    dense = prepare_dense(workspace)

    class Files:
        def note_unreadable(self, found: dict[str, str]) -> None:
            assert found == {}

    inputs = SweepInputs(
        study=study,
        dense_digest=dense.digest,
        dense=ray.put(dense),
        measures={study.draws()[0]: ray.put(small.measure_locally(workspace, dense))},
        files=Files(),  # type: ignore[arg-type]
        writer=None,
    )
    works = getattr(trial_work, broken)

    def refuse(*arguments: Any, **options: Any) -> Any:
        if broken == "run_float_stages" or (trial_of(arguments) == "int8"):
            raise PruningError("no")
        return works(*arguments, **options)

    monkeypatch.setattr(trial_work, broken, refuse)
    trials = group_siblings(study, study.trials())[0]
    found = list(carry_out(inputs, trials, "cpu", lambda workspace: LocalContext()))
    assert [trial.trial_id for trial, _ in found] == [outcome.row["trial_id"] for _, outcome in found]
    rows = [outcome.row for _, outcome in found]
    assert [(row["quantization"], row["status"], row.get("error")) for row in rows] == expected


@pytest.mark.ray
def test_a_study_fine_tunes_once_for_all_of_them(ray_session, tmp_path: Path) -> None:
    sweep = {"methods": ["magnitude"], "ratios": [0.3]}
    study = parse_study({**STUDY, "sweep": {**sweep, "quantization": ["none", "int8"]}})
    failed, said = small.run(study, tmp_path)
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
