"""The folder that `cleanai export --format standalone` makes of a trial, and its card."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from cleanai_ray import api
from cleanai_ray.cli import main
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.models import build_model, example_input
from cleanai_ray.pruning.saved_model import save_model
from cleanai_ray.stages.model_card import UNKNOWN_LICENSE, _base_model, _licence, _network
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

MODEL: dict[str, Any] = {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8]}
STUDY: dict[str, Any] = {
    "name": "cards",
    "model": {**MODEL, "weights": None},
    "data": {"name": "digits"},
    "sweep": {"methods": ["magnitude"], "ratios": [0.5]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run directory with one trial: 90 of 100 images right, where the dense model gets 95."""
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    section = ModelSection(**MODEL)
    result = api.prune(build_model(section), example_input(section), method="magnitude", ratio=0.5)
    row = {"trial_id": "the-trial", "status": schemas.OK, "method": "magnitude", "label": "magnitude", "mode": "local"}
    row |= {"ratio": 0.5, "accuracy": 0.9, "accuracy_dense": 0.95, "num_evaluated": 100, "lost": 7, "gained": 2}
    row |= {"params": 500, "params_dense": 1000, "macs": 3000, "macs_dense": 12000, "warnings": [], "num_classes": 10}
    row |= {"size_bytes": 2000, "size_bytes_dense": 4000, "latency_ms_b1_p50": 2.0, "latency_ms_b1_p50_dense": 5.0}
    row |= {"speedup_b1": 2.5, "speedup_b1_low": 2.4, "speedup_b1_high": 2.6, "repair": "closed_form, none, 0.001"}
    run.write_table(schemas.RESULTS_FILE, schemas.to_table([row], schemas.RESULTS))
    run.write_text("study.yaml", yaml.safe_dump(STUDY))
    record = {
        "version": "9.8.7",
        "commit": "c0ffee",
        "preprocessing": {"mean": [0.5], "train_area": 0.08, "std": [0.25]},
    }
    record["class_names"] = [f"digit {number}" for number in range(10)]
    run.write_json("environment.json", record)
    save_model(result.model, result.plan, run, "models/the-trial")
    return run


def card(text: str) -> tuple[dict[str, Any], str]:
    """Return the header and the body of a card."""
    empty, header, body = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(header), body


def test_a_trial_becomes_a_folder_with_a_card(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    arguments = ["export", run.location, "--format", "standalone", "--license", "mit", "--out", str(out)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(entry.name for entry in out.iterdir()) == ["README.md", "model.py", "model.safetensors"]
    assert len({entry.stat().st_mode for entry in out.iterdir()}) == 1  # who may read one, may read all
    header, body = card((out / "README.md").read_text())
    assert header["license"] == "mit"
    assert header["library_name"] == "pytorch"
    (entry,) = header["model-index"]
    assert entry["name"] == "cards/the-trial"
    (result,) = entry["results"]
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    assert result["metrics"][0]["value"] == 0.9
    for fact in (
        "50 % of the parameters",
        "25 % of the multiply-accumulates",
        # Wilson's interval of 90 in 100: (0.9 + 0.0192 +- 1.96 sqrt(0.0009 + 0.0000960)) / 1.0384.
        "90.0 % (82.6 to 94.5 %)",
        "95.0 % (",
        "\N{MINUS SIGN}5.00 points",
        "| MACs, batch 1 | 12 k | 3 k | \N{MINUS SIGN}75 % |",
        "| Latency, batch 1 | 5 ms | 2 ms | 2.50\N{MULTIPLICATION SIGN} (2.40\N{EN DASH}2.60) |",
        "from model import load",
        "[N, 1, 8, 8]",
        "- mean: `[0.5]`",
        "in their order: `digit 0`, `digit 1`, ",
        "CleanAI-Ray 9.8.7, commit c0ffee",
        "magnitude (ratio 0.5, local)",
        "closed_form, none, 0.001",
        "also decided which trial was chosen",
        "Pruning plan of ",
        "## Licence\n\n`mit`.",
    ):
        assert fact in body, fact
    assert "train_area" not in body  # what training alone does to images


def test_the_licence_of_weights_is_asked_for_by_the_name_of_their_file() -> None:
    for weights, name in (
        ("/home/someone/ours.pth", "ours.pth"),
        ("s3://bucket/ours.pth", "ours.pth"),
        ("pretrained",) * 2,
    ):
        study = cast("Any", SimpleNamespace(study={"model": {"weights": weights}}))
        said = _licence(study, UNKNOWN_LICENSE)
        assert f"made of (`{name}`)" in said
        assert _licence(study, "mit") == "`mit`."


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ({"name": "timm:resnet50.a1_in1k", "weights": "pretrained"}, "timm/resnet50.a1_in1k"),
        ({"name": "timm:resnet50", "weights": "pretrained"}, None),
        ({"name": "timm:hf-hub:owner/name", "weights": "pretrained"}, "owner/name"),
        ({"name": "hf:owner/name", "weights": "pretrained"}, "owner/name"),
        ({"name": "hf:/models/ours", "weights": "pretrained"}, None),
        ({"name": "hf:owner/name", "weights": "ours.pt"}, None),
        ({"name": "resnet50", "weights": "pretrained"}, None),
    ],
)
def test_a_card_names_the_repository_that_the_weights_began_with(model: dict[str, Any], base: str | None) -> None:
    assert _base_model(model) == base


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("timm:resnet10t", "ResNet (timm:resnet10t)"),
        ("resnet18", "ResNet (resnet18)"),
        ("resnet", "ResNet"),
        ("timm:./a/folder", "ResNet"),  # no card names a folder of a machine
        (None, "ResNet"),
    ],
)
def test_a_card_calls_a_network_by_its_class_and_the_name_in_the_study(name: str | None, called: str) -> None:
    frames = SimpleNamespace(study={"model": {"name": name}})
    assert _network(frames, SimpleNamespace(model={"class": "ResNet"})) == called  # type: ignore[arg-type]


def test_a_card_that_was_edited_stays(run: RunDirectory, tmp_path: Path) -> None:
    words = ["export", run.location, "--format", "standalone", "--out", str(tmp_path / "small")]
    card_file, new = tmp_path / "small" / "README.md", tmp_path / "small" / "README.new.md"
    assert main(words) == 0
    written = card_file.read_text()
    assert main([*words, "--license", "mit"]) == 0
    assert "`mit`." in card_file.read_text() != written
    card_file.write_text(f"{written}\nTrained by us.\n")
    assert main(words) == 0
    assert card_file.read_text() == f"{written}\nTrained by us.\n"
    assert new.read_text() == written


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization": "int8"}, "was measured in int8, and a standalone folder holds the model in float32"),
        ({"status": "error", "error": "x"}, "holds no trial 'the-trial' that succeeded"),
    ],
)
def test_what_the_tables_do_not_say_of_the_model_is_refused_before_anything_is_written(
    changes: dict[str, Any], said: str, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied, out = RunDirectory(tmp_path / "run"), tmp_path / "small"
    shutil.copytree(run.local_path(""), tmp_path / "run")
    (row,) = copied.read_table(schemas.RESULTS_FILE).to_pylist()
    copied.write_table(schemas.RESULTS_FILE, schemas.to_table([row | changes], schemas.RESULTS))
    words = ["export", copied.location, "--trial", "the-trial", "--format", "standalone", "--out", str(out)]
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_the_card_of_another_task_tells_its_own_score(run: RunDirectory, tmp_path: Path) -> None:
    copied = RunDirectory(tmp_path / "run")
    shutil.copytree(run.local_path(""), tmp_path / "run")
    (row,) = copied.read_table(schemas.RESULTS_FILE).to_pylist()
    changed = row | {"metric": "RMSE", "score": 0.31, "score_dense": 0.22}
    copied.write_table(schemas.RESULTS_FILE, schemas.to_table([changed], schemas.RESULTS))
    out = tmp_path / "small"
    assert main(["export", copied.location, "--format", "standalone", "--out", str(out)]) == 0
    header, body = card((out / "README.md").read_text())
    assert not {"model-index", "pipeline_tag", "metrics"} & header.keys()
    assert "It reaches RMSE 0.31 (R\N{SUPERSCRIPT TWO} 90.0 %)" in body
    assert "the dense network RMSE 0.22 (R\N{SUPERSCRIPT TWO}" in body
    assert "| RMSE | 0.22 | 0.31 | +41 % |" in body
    assert "Top-1" not in body
    assert " right" not in body


def test_a_card_is_read_by_the_library_of_the_hub(run: RunDirectory, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    assert main(["export", run.location, "--format", "standalone", "--out", str(tmp_path / "small")]) == 0
    found = hub.ModelCard((tmp_path / "small" / "README.md").read_text())
    assert found.data.license == "unknown"
    (result,) = found.data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == ("image-classification", "accuracy", 0.9)
    assert "Not stated." in found.text


def test_the_folder_is_in_the_run_directory_by_default(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", run.location, "--trial", "the-trial", "--format", "standalone"]) == 0
    where = Path(capsys.readouterr().out.strip())
    assert where == Path(run.location) / "exports" / "the-trial"
    assert (where / "README.md").exists()


def test_a_folder_is_written_file_by_file_where_there_are_no_folders(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an object store; this file system needs a folder to write to."""
    folder = run.local_path("exports/the-trial")
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    monkeypatch.setattr(RunDirectory, "is_local", property(lambda self: False))
    assert main(["export", run.location, "--format", "standalone"]) == 0
    assert capsys.readouterr().out == f"{run.location}/exports/the-trial\n"
    assert sorted(entry.name for entry in folder.iterdir()) == ["README.md", "model.py", "model.safetensors"]


def test_a_card_and_the_command_say_that_a_limit_is_missed(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 100 images the trial loses 5 net, and the study allows one point."""
    limited = tmp_path / "limited"
    shutil.copytree(run.location, limited)
    (limited / "study.yaml").write_text(yaml.safe_dump({**STUDY, "recommend": {"max_accuracy_loss": 1.0}}))
    words = ["export", str(limited), "--trial", "the-trial", "--format", "standalone", "--out", str(tmp_path / "small")]
    assert main(words) == 0
    note = "trial the-trial does not meet what the study states: accuracy lost at most 1 point, and it loses 5 points"
    assert f"note: {note}" in capsys.readouterr().err
    body = card((tmp_path / "small" / "README.md").read_text())[1]
    assert "## Limits of the study\n\n- Accuracy lost at most 1 point: **not met**; it loses 5 points" in body
    words[1], words[-1] = run.location, str(tmp_path / "free")
    assert main(words) == 0
    assert "note: trial" not in capsys.readouterr().err
    assert "## Limits" not in (tmp_path / "free" / "README.md").read_text()
