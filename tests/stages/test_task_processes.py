"""Trials of other tasks than classification in two real processes (gloo), which train together."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import small_study as small
import torch
import torch.multiprocessing as mp
from executors.label_data import multilabel
from executors.test_task_studies import COMMON, detection, regression, segmentation
from torch import distributed

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.outcome import run_trial
from cleanai_ray.stages.secondary_workers import assist_trial
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.tasks import find_task
from cleanai_ray.tasks.own import task_with
from cleanai_ray.training.context import LocalContext, TrainingContext
from cleanai_ray.training.processes import ProcessGroupContext

pytestmark = pytest.mark.slow

SHARES = [[0, 1, 1, 0, 1], [1] * 5]
"""Ranks that score five batches; of the second, one has none."""
STUDIES = {
    "segmentation": segmentation,
    "detection": detection,
    "regression": regression,
    "multilabel_classification": multilabel,
}


def study_of(task: str, folder: Path) -> Study:
    own = STUDIES[task](folder / task)
    own["data"]["calibration"] = {"samples": 48, "shard_size": 24}
    finetune = {"epochs": 2, "optimizer": "adamw", "learning_rate": 0.001, "num_workers": 2}
    sweep = {"methods": ["magnitude"], "ratios": [0.3], "modes": ["local"]}
    evaluation = {"split": "val", "latency": None, "validation_share": 0.5}
    settings = {"name": "small", **own, **COMMON, "sweep": sweep, "evaluation": evaluation, "finetune": finetune}
    return parse_study(settings)


def carry_out(task: str, folder: Path, context: TrainingContext) -> dict[str, Any]:
    """Run a trial in this process, or follow the process that does, and return what came of it."""
    study_json, dense, measures = pickle.loads((folder / f"{task}.pkl").read_bytes())
    workspace = open_workspace(study_json, "cpu")
    model, trial = workspace.dense_model(dense.weights), workspace.study.trials()[0]
    if context.rank:
        assert isinstance(context, ProcessGroupContext)
        assist_trial(workspace, trial, model, dense.logits, context)
        return {}
    outcome = run_trial(workspace, trial, dense, model, measures, context)
    context.dismiss()
    return {"row": small.timeless([outcome.row])[0], "history": small.timeless([*outcome.history])}


def mean_precision(context: TrainingContext) -> Any:
    """Score five images, of which one process has three and the other two."""
    generator, scorer = torch.Generator().manual_seed(0), find_task("detection").new_scorer()
    for number in range(5):
        boxes = torch.rand(3, 4, generator=generator) * 10
        boxes[:, 2:] += 10 + boxes[:, :2]
        labels = torch.randint(1, 3, (3,), generator=generator)
        found = {"boxes": boxes + torch.rand(3, 4, generator=generator), "labels": labels}
        found["scores"] = torch.rand(3, generator=generator)
        if number % context.world_size == context.rank:
            scorer.add(([found], torch.tensor(float(number))), [{"boxes": boxes, "labels": labels}])
    return scorer.result(context.all_reduce if context.world_size > 1 else None)


def macro_precision(context: TrainingContext, shares: list[int]) -> Any:
    """Score five batches of four samples, each by the process that has its share."""
    generator, scorer = torch.Generator().manual_seed(0), find_task("multilabel_classification").new_scorer()
    for share in shares:
        logits = torch.randn(4, 3, generator=generator)
        marks = (torch.rand(4, 3, generator=generator) > 0.5).long()
        if share % context.world_size == context.rank:
            scorer.add(logits, marks)
    return scorer.result(context.all_reduce if context.world_size > 1 else None)


OWN_METRICS = ("balanced", "Merging", "library")


def own_metrics(context: TrainingContext) -> list[Any]:
    """Score five batches of classes by metrics of a user's own, each batch by the process that has its share."""
    found = []
    for metric in OWN_METRICS:
        generator = torch.Generator().manual_seed(0)
        scorer = task_with("classification", metric=f"tasks.own_scores:{metric}").new_scorer()
        for share in SHARES[0]:
            logits, labels = torch.randn(4, 3, generator=generator), torch.randint(0, 3, (4,), generator=generator)
            if share % context.world_size == context.rank:
                scorer.add(logits, labels)
        found.append(scorer.result(context.all_reduce if context.world_size > 1 else None))
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    found: dict[str, Any] = {"precision": mean_precision(ProcessGroupContext(device="cpu"))}
    found["own"] = own_metrics(ProcessGroupContext(device="cpu"))
    found["macro"] = [macro_precision(ProcessGroupContext(device="cpu"), shares) for shares in SHARES]
    found |= {task: carry_out(task, Path(folder), ProcessGroupContext(device="cpu")) for task in STUDIES}
    Path(folder, f"{rank}.pkl").write_bytes(pickle.dumps(found))
    gc.collect()  # a model in a reference cycle keeps the group's threads alive
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the studies, their dense models and measures."""
    folder = tmp_path_factory.mktemp("tasks")
    for task in STUDIES:
        study_json = study_of(task, folder).model_dump_json()
        workspace = open_workspace(study_json, "cpu")
        dense = prepare_dense(workspace)
        content = pickle.dumps((study_json, dense, small.measure_locally(workspace, dense)))
        (folder / f"{task}.pkl").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize("task", STUDIES)
def test_two_processes_train_as_one_does(ranks: list[dict[str, Any]], folder: Path, task: str) -> None:
    """The loss of a detector is a mean over boxes, of which the shares of a batch have not equally many."""
    alone, both = carry_out(task, folder, LocalContext()), ranks[0][task]
    rounding = 0.1 if task == "detection" else 1e-3
    assert len(both["history"]) == len(alone["history"]) == 2
    for one, other in zip(alone["history"], both["history"], strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=rounding)
        assert other["validation_loss"] == pytest.approx(one["validation_loss"], rel=rounding)
    assert both["row"]["status"] == "ok"
    assert both["row"]["score_test"] == pytest.approx(alone["row"]["score_test"], rel=rounding, abs=0.1)
    assert both["row"]["accuracy_pruned"] == alone["row"]["accuracy_pruned"]  # before the training


def test_mean_precision_is_that_of_the_images_of_all_processes(ranks: list[dict[str, Any]]) -> None:
    alone = mean_precision(LocalContext())
    assert 0.1 < alone.value < 0.99
    assert alone.loss == 2.0
    assert [found["precision"] for found in ranks] == [alone, alone]


def test_own_metrics_are_of_the_samples_of_all_processes(ranks: list[dict[str, Any]]) -> None:
    alone = own_metrics(LocalContext())
    assert [found.value for found in alone] == pytest.approx([alone[0].value] * 3, rel=1e-5)
    for rank in ranks:
        for one, other in zip(alone, rank["own"], strict=True):
            assert other.value == pytest.approx(one.value, rel=1e-5)
            assert other.loss == pytest.approx(one.loss, rel=1e-6)
            assert other.num_samples == one.num_samples == 20


def test_macro_precision_is_that_of_the_samples_of_all_processes(ranks: list[dict[str, Any]]) -> None:
    """The order of samples, which is that of the ranks, changes the last digits of the loss alone."""
    alone = macro_precision(LocalContext(), SHARES[0])
    assert 0.1 < alone.value < 0.99
    for found in (each for rank in ranks for each in rank["macro"]):
        assert found.num_samples == 20
        assert found.parts == pytest.approx(alone.parts, rel=1e-12)
        assert found.loss == pytest.approx(alone.loss, rel=1e-12)
