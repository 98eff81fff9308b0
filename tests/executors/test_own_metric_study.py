"""A study with a loss and a metric of the user's own, whole, with the local executor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import small_study as small
import torch
from report.reading import read_pdf, text_of

from cleanai_ray.cli import main
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.models import build_model
from cleanai_ray.pruning.saved_model import load_model
from cleanai_ray.stages.fingerprints import calibration_key, dense_key, trial_key
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage.image_schemas import roles_of_images
from cleanai_ray.storage.run_directory import RunDirectory

SOURCE = """
import torch

def halved(outputs, targets):
    return 0.5 * torch.nn.functional.cross_entropy(outputs, targets)

def distance(predicted, targets):
    return float((predicted.argmax(1) - targets).abs().double().mean())
distance.higher_is_better = False
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the functions, which is the current one."""
    found = tmp_path_factory.mktemp("own")
    (found / "own_study_functions.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        yield found
    sys.modules.pop("own_study_functions", None)


def document(**task: str) -> dict[str, Any]:
    own = {
        "sweep": {"methods": ["taylor", "random"], "ratios": [0.3], "modes": ["local"]},
        "evaluation": {"samples": 100, "latency": None, "validation_share": 0.5},
        "output": {"save_models": "all"},
    }
    return {**small.SMALL, **own, "task": {key: f"own_study_functions:{name}" for key, name in task.items()}}


@pytest.fixture(scope="module")
def finished(folder: Path) -> Any:
    study = parse_study(document(loss="halved", metric="distance"))
    failed, said = small.run(study, folder / "run", report=True)
    assert failed == 0, said
    return study, RunDirectory(folder / "run"), said


def test_the_metric_is_that_of_the_saved_models(finished: Any) -> None:
    study, run, _ = finished
    rows = pq.read_table(run.local_path("results.parquet")).to_pylist()
    (numbers, images, labels), *more = open_workspace(study.model_dump_json(), "cpu").scored_batches()
    assert not more
    decides = torch.from_numpy(roles_of_images(numbers.tolist(), 0.5))
    for row in rows:
        dense = build_model(study.model.model_copy(update={"train": None}))
        model = load_model(dense, run, f"models/{row['trial_id']}").eval()
        with torch.no_grad():
            apart = (model(images).argmax(1) - labels).abs().double()
        assert row["metric"] == "distance (lower is better)"
        assert row["score"] == pytest.approx(float(apart.mean()))
        assert row["score_test"] == pytest.approx(float(apart[~decides].mean()))
        assert row["score_validation"] == pytest.approx(float(apart[decides].mean()))
        assert row["accuracy"] == pytest.approx(1 / (1 + row["score"]))
        assert row["accuracy_low"] is None


def test_report_and_terminal_name_the_metric(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, run, said = finished
    assert "dense distance (lower is better): " in said
    assert "best distance (lower is better) " in said
    text = text_of(read_pdf(run))
    assert "1 / (1 + distance)" in text
    assert "A low distance is good" in text
    shown = text.partition("Reproduction")[0]
    assert "accuracy of" not in shown.lower()
    assert main(["status", run.location]) == 0
    printed = capsys.readouterr().out
    assert "distance (lower is better) " in printed.partition("dense")[2]
    assert "%" not in printed.partition("best")[2].partition("updated")[0]


def test_what_is_computed_depends_on_the_functions_and_on_their_source(folder: Path) -> None:
    plain, own = parse_study(document()), parse_study(document(loss="halved", metric="distance"))
    trial = plain.trials()[0]

    def keys(study: Any) -> tuple[str, ...]:
        return dense_key(study), calibration_key(study, "d"), trial_key(study, trial, "d")

    before = keys(own)
    assert all(one != other for one, other in zip(keys(plain), before, strict=True))
    file = folder / "own_study_functions.py"
    file.write_text(SOURCE.replace("0.5 *", "0.25 *"))
    assert all(one != other for one, other in zip(before, keys(own), strict=True))
    file.write_text(SOURCE)
    assert keys(own) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"loss": "own_study_functions:none"}}, "task.loss 'own_study_functions:none': 'none' is not a func"),
        ({"task": {"metric": "nowhere:f"}}, "task.metric 'nowhere:f': module 'nowhere' cannot be imported"),
        ({"task": {"metric": "f"}}, "task.metric is 'f'; allowed: package.module:function"),
        (
            {"finetune": {"epochs": 1, "label_smoothing": 0.1}, "task": {"loss": "own_study_functions:halved"}},
            "finetune.label_smoothing is 0.1; allowed with a task.loss of your own: 0",
        ),
        (
            {
                "task": {"metric": "own_study_functions:distance"},
                "sweep": {"methods": ["random"], "ratios": [0.3], "quantization": ["int8"]},
            },
            "sweep.quantization is int8; allowed for task classification with a metric of its own: none",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(changes: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study({**document(), **changes})
