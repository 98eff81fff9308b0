"""A trial in two real processes (gloo): the second does its share of the training and of the scoring."""

from __future__ import annotations

import dataclasses
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import small_study as small
import torch
import torch.multiprocessing as mp
from torch import distributed

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import CleanAIError, SampleError
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.outcome import run_trial
from cleanai_ray.stages.secondary_workers import assist_trial
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.training.context import LocalContext, TrainingContext
from cleanai_ray.training.processes import ProcessGroupContext

pytestmark = pytest.mark.slow

pytest.importorskip("onnxruntime")

SETTINGS: dict[str, Any] = {
    **small.SMALL,
    "model": {**small.SMALL["model"], "train": {"epochs": 4}},
    "data": {**small.SMALL["data"], "batch_size": 101},
    "sweep": {"methods": ["magnitude"], "ratios": [0.3], "steps": [2]},
    # 101, 101 and 98 images: two batches for one process, and one for the other.
    "evaluation": {"samples": 300, "latency": None},
}
TRIALS = {
    "trained": {
        "repair": {"compensation": "none", "batch_norm": "none"},
        "finetune": {"between_steps": 1, "epochs": 2, "learning_rate": 0.02, "num_workers": 2},
    },
    "quantized": {"finetune": {"epochs": 0}, "sweep": {**SETTINGS["sweep"], "quantization": ["int8"]}},
    "unreadable": {"finetune": {"epochs": 0}},
}


@dataclasses.dataclass(frozen=True)
class Watched(Workspace):
    """A workspace that notes which evaluation samples are asked for; its process may be unable to read them."""

    asked: list[Any] = dataclasses.field(default_factory=list)
    reads: bool = True

    def scored_batches(self, positions: Any = None) -> Any:
        self.asked.append(positions.tolist())
        if not self.reads:
            raise SampleError("cannot be read", "7.png")
        return super().scored_batches(positions)


def carry_out(name: str, folder: Path, context: TrainingContext) -> dict[str, Any]:
    """Run a trial in this process, or follow the process that does, and return what came of it."""
    study = parse_study({**SETTINGS, **TRIALS[name]})
    opened = open_workspace(study.model_dump_json(), "cpu")
    fields = {field.name: getattr(opened, field.name) for field in dataclasses.fields(Workspace)}
    workspace = Watched(**fields, reads=name != "unreadable" or not context.rank)
    dense, measures = pickle.loads((folder / "dense.pkl").read_bytes())
    model, trial = workspace.dense_model(dense.weights), study.trials()[0]
    if context.rank:
        assert isinstance(context, ProcessGroupContext)
        assist_trial(workspace, trial, model, dense.logits, context)
        return {"asked": workspace.asked}
    try:
        outcome = run_trial(workspace, trial, dense, model, measures, context)
    except CleanAIError as error:
        context.dismiss()
        return {"error": str(error)}
    context.dismiss()
    return {
        "asked": workspace.asked,
        "row": small.timeless([outcome.row])[0],
        "classes": list(outcome.classes),
        "history": small.timeless([*outcome.history]),
    }


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    context = [ProcessGroupContext(device="cpu") for _ in TRIALS]
    found = {name: carry_out(name, Path(folder), own) for name, own in zip(TRIALS, context, strict=True)}
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(found))
    gc.collect()  # a model in a reference cycle keeps the group's threads alive
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dense model and its measures."""
    folder = tmp_path_factory.mktemp("followers")
    workspace = open_workspace(parse_study(SETTINGS).model_dump_json(), "cpu")
    dense = prepare_dense(workspace)
    (folder / "dense.pkl").write_bytes(pickle.dumps((dense, small.measure_locally(workspace, dense))))
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(2)]


def test_two_processes_score_whole_batches_of_their_own_after_each_stage(ranks: list[dict[str, Any]]) -> None:
    # After surgery and fine-tuning; after surgery, repair and quantisation.
    for name, times in (("trained", 2), ("quantized", 3)):
        assert ranks[0][name]["asked"] == [list(range(202))] * times
        assert ranks[1][name]["asked"] == [list(range(202, 300))] * times


def test_two_processes_score_as_one_does(ranks: list[dict[str, Any]], folder: Path) -> None:
    alone, both = carry_out("quantized", folder, LocalContext()), ranks[0]["quantized"]
    assert alone["asked"] == [list(range(300))] * 3
    assert both["classes"] == alone["classes"]
    assert both["row"]["accuracy_quantized"] > 0.5
    for name, value in alone["row"].items():
        assert both["row"][name] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), name


def test_two_processes_train_as_one_does(ranks: list[dict[str, Any]], folder: Path) -> None:
    alone, both = carry_out("trained", folder, LocalContext()), ranks[0]["trained"]
    # The same steps in another order of addition: what is near a decision may fall on either side of it, more of it
    # from step to step.
    losses = [[row["train_loss"] for row in found["history"]] for found in (alone, both)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert [(row["step"], row["epoch"], row["is_best"]) for row in both["history"]][1:] == [(2, 2, False), (2, 3, True)]
    assert both["row"]["accuracy_pruned"] < 0.3
    assert both["row"]["accuracy_finetuned"] > 0.8
    assert both["row"]["accuracy_finetuned"] == pytest.approx(alone["row"]["accuracy_finetuned"], abs=6 / 300)


def test_what_the_other_process_cannot_read_fails_the_trial_in_a_sentence(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["unreadable"] == {"error": "sample '7.png' cannot be read"}
    assert ranks[1]["unreadable"] == {"asked": [list(range(202, 300))]}
