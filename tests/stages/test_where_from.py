"""The record of a run says what its numbers come from: the commit and the images, and what is not known of weights."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
from report.tables import study_of

from cleanai_ray.analysis.risks import find_risks
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.stages.environment import commit_of


def test_the_commit_is_told_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None

    def git(*words: str) -> str:
        options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *options, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "first", "--no-verify")
    assert commit_of(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert commit_of(tmp_path) == git("rev-parse", "HEAD") + "+"


def test_other_images_labels_or_weights_have_another_digest() -> None:
    values = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    known = KeptLogits(numbers=np.array([0, 1]), values=values, labels=np.array([1, 0]))
    others = [
        replace(known, numbers=np.array([0, 2])),
        replace(known, labels=np.array([1, 1])),
        replace(known, values=values[:, ::-1]),
    ]
    assert len({known.digest, *(other.digest for other in others)}) == 4
    assert replace(known, values=values + np.float32(1e-4)).digest == known.digest  # another processor rounds otherwise
    assert KeptLogits(numbers=np.zeros(0, dtype=np.int64), values=np.zeros((0, 0), dtype=np.float32)).digest


def test_of_given_weights_it_is_not_known_what_they_were_trained_on() -> None:
    samples = {"samples": {"calibration_withheld_from_training": True}}

    def found(**model: str) -> list[str]:
        study = study_of(lambda *_: 90.0, labels=("wanda",), environment=samples, study={"model": model})
        return [risk.sentence for risk in find_risks(study) if risk.kind == "calibration shared with training"]

    assert found(name="resnet20") == []
    (sentence,) = found(name="resnet20", weights="weights.safetensors")
    assert "not known if they were trained on the calibration images" in sentence
