"""Studies of other tasks than classification, whole, with the local executor: data, scores, tables and report."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import small_study as small
import torch
from executors.label_data import multilabel
from PIL import Image
from report.reading import read_pdf, text_of
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from cleanai_ray import load_run
from cleanai_ray.cli import main
from cleanai_ray.config.study import parse_study
from cleanai_ray.models import build_model
from cleanai_ray.pruning.saved_model import load_model
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage.image_schemas import roles_of_images
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.tasks import find_task

REPOSITORY = Path(__file__).resolve().parents[2]
LENGTH = 12
COMMON: dict[str, Any] = {
    "pruning": {"round_to": None},
    "repair": {"compensation": "closed_form", "batch_norm": "none", "samples": 32},
    "finetune": {"epochs": 1, "optimizer": "adamw", "learning_rate": 0.001},
    "output": {"save_models": "all"},
    "resources": {"calibration_actors": 1, "max_concurrent_trials": 1},
}


def make_masks(folder: Path) -> None:
    """Squares and bars on noise: grey images of 16 x 16 pixels."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 96), ("val", 40)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            image = generator.integers(0, 80, (16, 16)).astype(np.uint8)
            mask = np.zeros((16, 16), np.uint8)
            top, left = generator.integers(0, 9, 2)
            label = int(generator.integers(1, 3))
            place = slice(top, top + 7), slice(left, left + (7 if label == 1 else 3))
            image[place], mask[place] = 120 + 60 * label, label
            mask[0, 0] = 255
            Image.fromarray(image).save(folder / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / split / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("nothing\nsquare\nbar\n")


def make_texts(folder: Path) -> None:
    content = (REPOSITORY / "LICENSE").read_bytes()
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.txt").write_bytes(content[:1500])
    (folder / "train" / "b.txt").write_bytes(content[1500:3000])
    (folder / "val.txt").write_bytes(content[3000:3700])


def make_table(folder: Path) -> None:
    runpy.run_path(str(REPOSITORY / "jobs" / "make_task_data.py"))["make_table"](folder, {"train": 300, "val": 80})


def segmentation(folder: Path) -> dict[str, Any]:
    make_masks(folder)
    model = {"factory": "cleanai_ray.models.small_unet:build", "num_classes": 3, "input_shape": [1, 16, 16]}
    train = {"epochs": 2, "optimizer": "adamw", "learning_rate": 0.01, "batch_size": 16}
    return {
        "task": {"name": "segmentation"},
        "model": {**model, "options": {"width": 8}, "train": train},
        "data": {"name": "image_masks", "root": str(folder), "batch_size": 16},
    }


def language(folder: Path) -> dict[str, Any]:
    pytest.importorskip("transformers")
    make_texts(folder)
    model = {"factory": "cleanai_ray.models.small_llama:build", "num_classes": 256, "input_shape": [LENGTH]}
    options = {"length": LENGTH, "width": 24, "hidden": 32, "heads": 6, "depth": 1}
    train = {"epochs": 2, "optimizer": "adamw", "learning_rate": 0.01, "batch_size": 16}
    return {
        "task": {"name": "language_modelling"},
        "model": {**model, "options": options, "train": train},
        "data": {"name": "text_files", "root": str(folder), "batch_size": 16},
    }


def regression(folder: Path) -> dict[str, Any]:
    make_table(folder)
    model = {"factory": "cleanai_ray.models.small_mlp:build", "num_classes": 1, "input_shape": [10]}
    train = {"epochs": 10, "optimizer": "adamw", "learning_rate": 0.01, "batch_size": 32}
    return {
        "task": {"name": "regression"},
        "model": {**model, "options": {"columns": 10, "width": 16, "depth": 2}, "train": train},
        "data": {"name": "table", "root": str(folder), "batch_size": 32, "options": {"targets": ["y"]}},
    }


def make_boxes(folder: Path) -> None:
    """One white square on black, in colour, with its box as COCO writes it."""
    generator = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("train", 96), ("val", 24)):
        (folder / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            side = int(generator.integers(12, 20))
            top, left = (int(value) for value in generator.integers(0, 32 - side, 2))
            image = np.zeros((32, 32, 3), np.uint8)
            image[top : top + side, left : left + side] = 255
            Image.fromarray(image).save(folder / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png"})
            annotations.append({"image_id": number, "category_id": 1, "bbox": [left, top, side, side]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def detection(folder: Path) -> dict[str, Any]:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    make_boxes(folder)
    model = {"factory": "cleanai_ray.models.small_ssd:build", "num_classes": 2, "input_shape": [3, 32, 32]}
    train = {"epochs": 6, "optimizer": "adamw", "learning_rate": 0.01, "batch_size": 16}
    return {
        "task": {"name": "detection"},
        "model": {**model, "options": {"size": 32, "width": 4}, "train": train},
        "data": {"name": "coco", "root": str(folder), "batch_size": 16},
    }


STUDIES = {
    "multilabel_classification": multilabel,
    "segmentation": segmentation,
    "language_modelling": language,
    "regression": regression,
    "detection": detection,
}


@pytest.fixture(scope="module", params=STUDIES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(task, study, run directory, what was printed)."""
    folder = tmp_path_factory.mktemp(request.param)
    own = STUDIES[request.param](folder / "data")
    own["data"]["calibration"] = {"samples": 48, "shard_size": 24}
    sweep = {"methods": ["taylor", "wanda", "random"], "ratios": [0.3], "modes": ["local"]}
    evaluation = {"split": "val", "latency": {"batch_sizes": [1], "warmup": 1, "runs": 5}, "validation_share": 0.5}
    study = parse_study({"name": "small", **own, **COMMON, "sweep": sweep, "evaluation": evaluation})
    failed, said = small.run(study, folder / "run", report=True)
    assert failed == 0, said
    return request.param, study, RunDirectory(folder / "run"), said


def rows_of(run: RunDirectory) -> list[dict[str, Any]]:
    return pq.read_table(run.local_path("results.parquet")).to_pylist()


def samples(study: Any, decides: bool | None = None) -> tuple[list[Tensor], list[Any]]:
    """Inputs and targets of the scored samples of one role, or of all."""
    workspace = open_workspace(study.model_dump_json(), "cpu")
    every = [
        (number, inputs[place], targets[place])
        for numbers, inputs, targets in workspace.scored_batches()
        for place, number in enumerate(numbers.tolist())
    ]
    roles = roles_of_images([number for number, _, _ in every], study.evaluation.validation_share)
    chosen = [entry for entry, role in zip(every, roles, strict=True) if decides is None or role == decides]
    return [inputs for _, inputs, _ in chosen], [target for _, _, target in chosen]


def slow_score(task: str, model: nn.Module, images: list[Tensor], answers: list[Any]) -> float:
    """The score by its definition, sample by sample; mAP, which `test_detection` proves, by its library."""
    if task == "detection":
        from torchmetrics.detection import MeanAveragePrecision

        library = MeanAveragePrecision()
        with torch.no_grad():
            library.update(model(images), answers)
        return max(0.0, float(library.compute()["map"]))
    targets = torch.stack(answers)
    with torch.no_grad():
        found = model(torch.stack(images))
    if task == "regression":
        errors = [(float(a) - float(b)) ** 2 for a, b in zip(found.flatten(), targets.flatten(), strict=True)]
        return math.sqrt(sum(errors) / len(errors))
    if task == "multilabel_classification":
        return float(average_precision_score(targets.numpy(), found.numpy(), average="macro"))
    if task == "language_modelling":
        logs = found.logits.double().log_softmax(-1)
        losses = [-float(logs[i, t, targets[i, t]]) for i in range(len(targets)) for t in range(LENGTH)]
        return math.exp(sum(losses) / len(losses))
    said_all, shares = found.argmax(1), []
    for label in range(3):
        said, is_so = (said_all == label) & (targets != 255), targets == label
        if (said | is_so).any():
            shares.append(float((said & is_so).sum() / (said | is_so).sum()))
    return sum(shares) / len(shares)


METRIC = {
    "multilabel_classification": "macro AP",
    "segmentation": "mIoU",
    "language_modelling": "perplexity",
    "regression": "RMSE",
    "detection": "mAP",
}


def test_the_scores_of_saved_models_are_those_of_the_definition(finished: Any) -> None:
    task, study, run, _ = finished
    rows = rows_of(run)
    assert len(rows) == 3
    everything = samples(study)
    for row in rows:
        dense = build_model(study.model.model_copy(update={"train": None}), task=find_task(task))
        model = load_model(dense, run, f"models/{row['trial_id']}").eval()
        assert row["metric"] == METRIC[task]
        assert row["score"] == pytest.approx(slow_score(task, model, *everything), rel=1e-4)
        assert row["score_test"] == pytest.approx(slow_score(task, model, *samples(study, False)), rel=1e-4)
        decided = slow_score(task, model, *samples(study, True))
        assert row["score_validation"] == pytest.approx(decided, rel=1e-4)
        if task in ("segmentation", "detection", "multilabel_classification"):
            assert row["accuracy_validation"] == pytest.approx(decided, rel=1e-4)
        if task == "language_modelling":
            assert row["accuracy_validation"] == pytest.approx(1 / decided, rel=1e-4)
            assert row["accuracy"] == pytest.approx(1 / row["score"])
        if task == "regression":
            spread = float(torch.stack(everything[1]).double().var(correction=0))
            assert row["accuracy"] == pytest.approx(max(0.0, 1 - row["score"] ** 2 / spread), abs=1e-4)
        assert (row["score_test"], row["score_test_dense"]) != (row["score"], row["score_dense"])
        assert row["macs"] < row["macs_dense"]
        assert row["accuracy_low"] is None  # a share of right answers alone has Wilson's interval
        assert row["is_broken"] is None


def test_scores_of_the_dense_model_and_of_classes_are_of_the_samples_that_are_reported_on(finished: Any) -> None:
    task, study, run, _ = finished
    row, reported = rows_of(run)[0], samples(study, False)
    model = build_model(study.model.model_copy(update={"train": None}), task=find_task(task)).eval()
    model.load_state_dict(safetensors.torch.load(run.read_bytes("cache/dense.safetensors")))
    assert row["score_test_dense"] == pytest.approx(slow_score(task, model, *reported), rel=1e-4)
    classes = pq.read_table(run.local_path("classes.parquet")).to_pylist()
    assert {entry["num_evaluated"] for entry in classes} <= {row["num_test"]}
    own = [entry for entry in classes if entry["trial_id"] == row["trial_id"]]
    if task in ("segmentation", "multilabel_classification"):
        found = sum(entry["accuracy_dense"] for entry in own) / len(own)
        assert found == pytest.approx(row["score_test_dense"], abs=1e-6)


def test_repair_brings_the_model_nearer_to_the_dense_one(finished: Any) -> None:
    rows = rows_of(finished[2])
    repaired, pruned, dense = (
        np.mean([row[f"accuracy_{stage}"] for row in rows]) for stage in ("repaired", "pruned", "dense")
    )
    assert abs(dense - repaired) < abs(dense - pruned)


def test_no_page_says_accuracy_of_another_score(finished: Any) -> None:
    task, _, run, said = finished
    text = text_of(read_pdf(run))
    assert METRIC[task] in text
    shown = text.partition("Reproduction")[0].lower()  # what follows holds the study file and the names of columns
    for key in ("recommend.max_accuracy_loss", "expected_accuracy"):  # keys of the study file
        shown = shown.replace(key, "")
    assert "accura" not in shown
    assert "top-1" not in shown
    assert f"dense {METRIC[task]}" in said
    for chart in run.list("charts"):
        words = run.read_text(f"charts/{chart}").lower()
        assert ">accura" not in words, chart
        assert " accuracy" not in words, chart
    html = run.read_text("report.html")
    assert METRIC[task] in html


def test_pages_promise_no_interval_and_name_classes(finished: Any) -> None:
    task, _, run, _ = finished
    results = text_of(read_pdf(run)).rpartition("How to reproduce")[0]
    assert METRIC[task] in results
    for said in ("McNemar", "(\N{EN DASH})", "mIoU (95", "mAP (95", "probability (95"):
        assert said not in results
    if task == "segmentation":
        for said in ("(square)", ">IoU of the class"):
            assert said in run.read_text("charts/class_change.svg")


def test_a_finished_study_runs_again_without_computing(finished: Any) -> None:
    _, study, run, _ = finished
    failed, said = small.run(study, run.local_path(""))
    assert failed == 0
    assert "nothing is left to compute" in said


def test_training_keeps_the_score_of_the_task_in_its_history(finished: Any) -> None:
    rows = pq.read_table(finished[2].local_path("history.parquet")).to_pylist()
    assert len(rows) >= 3
    assert all(0 <= row["validation_accuracy"] <= 1 for row in rows)
    assert all(row["train_accuracy"] is None for row in rows)


def test_the_run_is_opened_in_python(finished: Any) -> None:
    task, _, run, _ = finished
    opened = load_run(run.local_path(""))
    assert opened.model().state_dict()
    words = str(opened.summary())
    assert METRIC[task] in words
    assert "accuracy" not in words


def test_the_best_model_is_exported(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, run, _ = finished
    code = main(["export", str(run.local_path("")), "--format", "state_dict"])
    assert code == 0, capsys.readouterr()


@pytest.mark.ray
def test_ray_gives_the_tables_of_the_local_executor(ray_session: Any, tmp_path: Path) -> None:
    own = regression(tmp_path / "data")
    own["data"]["calibration"] = {"samples": 48, "shard_size": 24}
    sweep = {"methods": ["taylor"], "ratios": [0.3], "modes": ["local"]}
    study = parse_study({"name": "small", **own, **COMMON, "sweep": sweep, "evaluation": {"split": "val"}})
    for executor in ("local", "ray"):
        failed, said = small.run(study, tmp_path / executor, executor)
        assert failed == 0, said
    local, distributed = (small.timeless_table(tmp_path / executor) for executor in ("local", "ray"))
    assert distributed == local
    assert local[0]["metric"] == "RMSE"
