"""The command line: exit codes, one line on what is wrong, and what each command prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cleanai_ray.cli import main
from cleanai_ray.config.study import load_study
from cleanai_ray.registry import CHARTS, DATASETS, FORMATS, METHODS, METRICS, MODELS
from cleanai_ray.stages.fingerprints import dense_key, trial_key
from cleanai_ray.stages.planning import missing_inputs
from cleanai_ray.storage.run_directory import RunDirectory

STUDIES = Path(__file__).parents[1] / "jobs" / "studies"
STUDY = {
    "name": "wrong",
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
    "data": {"name": "digits", "calibration": {"samples": 64}},
    "sweep": {"methods": ["coverage"], "ratios": [0.3]},
}


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return str(path)


def refused(capsys, *arguments: str) -> str:
    """Run a command that must be refused, and return the one line it says."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep.ratioz=[0.3]", ["sweep.ratioz", "did you mean 'ratios'"]),
        ("sweep.methods=[covrage]", ["covrage", "did you mean 'coverage'", "magnitude"]),
        ("sweep.ratios=[1.5]", ["sweep.ratios", "1.5", "below 1"]),
        ("evaluation.split=train", ["data.calibration.split", "train", "allow_overlap"]),
        ("data.calibration.samples=100000", ["data.calibration.samples", "100000", "at most"]),
        ("model.input_shape=[3,8,8,8]", ["model.input_shape"]),
        ("model.name=resnet21", ["model.name", "resnet21", "resnet20"]),
        ("pruning.ignored_layers=[layer9]", ["ignored_layers", "layer9"]),
    ],
)
def test_a_wrong_study_is_one_line_and_exit_code_2(capsys, study_file, tmp_path, command, override, words):
    line = refused(capsys, command, study_file, "--out", str(tmp_path / "out"), "--set", override)
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["data.root", "model.weights"])
def test_an_input_that_is_missing_stops_a_run_and_is_named_in_a_plan(capsys, study_file, tmp_path, missing):
    changes = ["data.name=fashion_mnist", "model.input_shape=[1,28,28]", "model.train=null", f"{missing}=/nonexistent"]
    arguments = [study_file, "--out", str(tmp_path / "out"), *(word for text in changes for word in ("--set", text))]
    line = refused(capsys, "run", *arguments)
    assert missing in line
    assert "/nonexistent" in line
    assert main(["plan", *arguments]) == 2
    text = capsys.readouterr().out
    assert text.count("to run") == 1
    (note,) = [line for line in text.splitlines() if "/nonexistent" in line]
    assert note.startswith(f"{missing} '/nonexistent' does not exist")
    assert "machine" not in note


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_plan_prints_every_study_that_ships(capsys, path):
    study = load_study(path)
    assert main(["plan", str(path)]) == (2 if missing_inputs(study) else 0)
    text = capsys.readouterr().out
    for trial in study.trials():
        assert trial.trial_id in text


def test_submit_passes_the_options_of_run_on(monkeypatch, study_file, tmp_path):
    from cleanai_ray.executors.ray import jobs

    passed = []
    monkeypatch.setattr(jobs, "submit_study", lambda *_, options, **__: passed.append(options) or 7)
    options = ["--out", str(tmp_path / "a folder"), "--set", "sweep.ratios=[0.3]", "--set", "name=b"]
    options += ["--fresh", "--no-report"]
    assert main(["submit", study_file, "--address", "http://head:8265", *options]) == 7
    assert passed == [options]


def test_weights_that_do_not_fit_are_named(capsys, study_file, reference_weights):
    arguments = [
        "--set",
        "model.train=null",
        "--set",
        f"model.weights={reference_weights}",
        "--set",
        "model.num_classes=10",
    ]
    line = refused(capsys, "plan", study_file, *arguments, "--set", "model.name=resnet18")
    assert "model.weights" in line
    assert str(reference_weights) in line


def test_wrong_commands_are_one_line(capsys, tmp_path):
    assert "frobnicate" in refused(capsys, "frobnicate")
    assert "methodz" in refused(capsys, "list", "methodz")
    assert "Missing argument" in refused(capsys, "run")
    assert str(tmp_path) in refused(capsys, "report", str(tmp_path))
    assert "--planned is 2" in refused(capsys, "report", str(tmp_path), "--planned", "2")
    (tmp_path / "results.parquet").touch()
    assert "which holds the tables of a run" in refused(capsys, "report", "a", "b", "--out", str(tmp_path))
    assert "no such file" in refused(capsys, "plan", str(tmp_path / "none.yaml")).lower()


@pytest.mark.parametrize(
    ("kind", "registry"),
    [
        ("methods", METHODS),
        ("metrics", METRICS),
        ("models", MODELS),
        ("datasets", DATASETS),
        ("charts", CHARTS),
        ("formats", FORMATS),
    ],
)
def test_list_shows_every_name_with_a_line(capsys, kind, registry):
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in registry.names():
        line = next(line for line in lines if line.split()[0] == name)
        assert len(line.split()) > 2


def test_plan_shows_every_trial_and_starts_nothing(capsys, study_file, tmp_path):
    arguments = ["--set", "sweep.modes=[local,global]", "--set", "resources.gpus_per_trial=0.5"]
    assert main(["plan", study_file, "--out", str(tmp_path / "out"), *arguments]) == 0
    text = capsys.readouterr().out
    assert text.count("to run") == 2
    assert "1 CPU + 0.5 GPU" in text
    assert "2 trials, 0 of them cached" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kept", "cached"), [("front", 0), ("best", 1), ("none", 1), ("all", 0)])
def test_a_trial_is_cached_if_a_run_would_not_repeat_it(capsys, study_file, tmp_path, kept, cached):
    arguments = ["plan", study_file, "--out", str(tmp_path), "--set", f"output.save_models={kept}"]
    study, run = load_study(study_file), RunDirectory(tmp_path)
    (trial,) = study.trials()
    row = {"trial_id": trial.trial_id, "accuracy": 0.9, "macs": 50}
    for name, value, key in (
        ("cache/dense.json", {"digest": "of the weights"}, dense_key(study)),
        (f"trials/{trial.trial_id}.json", {"row": row}, trial_key(study, trial, "of the weights")),
    ):
        run.write_json(name, value)
        run.mark(name, key)
    assert main(arguments) == 0
    assert f"1 trial, {cached} of them cached" in capsys.readouterr().out
    run.write_text(f"models/{trial.trial_id}/plan.json", "{}")
    assert main(arguments) == 0
    assert "1 trial, 1 of them cached" in capsys.readouterr().out


def test_plan_warns_of_another_study_in_the_run_directory(capsys, study_file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    warnings = []
    for content in ("name: other\n", f"name: {load_study(study_file).name}\n", "- no study\n", "name: [\n"):
        (out / "study.yaml").write_text(content)
        assert main(["plan", study_file, "--out", str(out)]) == 0
        lines = capsys.readouterr().out.splitlines()
        warnings.append([line for line in lines if "holds the study" in line])
    assert all(word in warnings[0][0] for word in (str(out), "'other'", "history/", "--out"))
    assert [len(found) for found in warnings] == [1, 0, 0, 0]


def test_plan_says_what_is_learned_from_without_labels(capsys, study_file):
    labelled, unlabelled = [], ["--set", "finetune={epochs: 1, data: calibration, distillation: {weight: 1}}"]
    counts = []
    for arguments in (labelled, unlabelled):
        assert main(["plan", study_file, *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        counts.append(sum("fine-tuning" in line and "without labels" in line for line in lines))
    assert counts == [0, 1]


@pytest.mark.parametrize("split", ["test", "val", "validation"])
def test_scored_images_are_not_learned_from_whatever_their_split_is_called(capsys, study_file, split):
    changes = [
        "finetune={epochs: 1, data: calibration, distillation: {weight: 1}}",
        f"data.calibration={{samples: 64, split: {split}, allow_overlap: true}}",
        "evaluation.split=val",
    ]
    line = refused(capsys, "plan", study_file, *(word for text in changes for word in ("--set", text)))
    facts = ("finetune.data", "'calibration'", "data.calibration.split", f"'{split}'", "evaluation", "'training'")
    assert all(fact in line for fact in facts)


def test_the_extra_that_a_format_needs_is_listed(capsys):
    pytest.importorskip("onnx")
    assert main(["list", "formats"]) == 0
    assert "(extra: cleanai-ray[onnx])" in capsys.readouterr().out


def test_plan_does_not_load_ray(study_file):
    code = (
        f"import sys; from cleanai_ray.cli import main; main(['plan', {study_file!r}]); sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "cleanai_ray", "list", "metrics"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "normalized_mean" in done.stdout


@pytest.mark.parametrize(
    ("words", "how"), [((), "again to resume"), (("--fresh",), "again, without --fresh, to resume")]
)
def test_ctrl_c_says_which_command_resumes(study_file, words, how, monkeypatch, capsys):
    def interrupt(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("cleanai_ray.executors.run_study.run_study", interrupt)
    assert main(["run", study_file, *words]) == 130
    assert capsys.readouterr().err == f"cleanai: interrupted; run the same command {how}\n"


def test_a_name_that_timm_knows_is_given_with_its_prefix(study_file, capsys):
    pytest.importorskip("timm")
    said = refused(capsys, "plan", study_file, "--set", "model.name=resnet10t")
    assert "timm has it: 'timm:resnet10t'" in said
    assert "resnet50, resnet50" not in refused(capsys, "plan", study_file, "--set", "model.name=resnet5o")
