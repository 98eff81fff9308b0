"""What every method removes and scores is what it was when the golden study was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_study as small
from golden import ACCURACIES, EXPECTED, differences, read_golden

from cleanai_ray.config.study import load_study

REPOSITORY = Path(__file__).resolve().parents[2]
ONE_STEP = ["sweep.steps=[1]", "sweep.quantization=[none]", "finetune.between_steps=0"]


def test_differences_are_named() -> None:
    old = {"a": {"accuracy": 0.5, "removed": {"conv": [1]}}, "b": {"accuracy": 0.5, "removed": {}}}
    new = {"a": {"accuracy": 0.5, "removed": {"conv": [2]}}, "c": {"accuracy": 0.5, "removed": {}}}
    assert differences(old, old) == []
    assert differences(old, new) == [
        "b: missing",
        "c: new",
        "a: removed was {'conv': [1]}, is {'conv': [2]}",
    ]


@pytest.mark.slow
def test_every_method_removes_and_scores_what_it_did(
    fashion_mnist_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ids are those that were recorded; scores may move by a few of 400 images where a processor rounds otherwise."""
    monkeypatch.chdir(REPOSITORY)
    failed, said = small.run(load_study("tests/golden/study.yaml", ONE_STEP), tmp_path)
    assert failed == 0, said
    expected, found = json.loads(EXPECTED.read_text()), read_golden(tmp_path)
    assert len(found) == 14
    for name, trial in found.items():
        before = expected[name]
        removed = {(layer, channel) for layer, channels in trial["removed"].items() for channel in channels}
        recorded = {(layer, channel) for layer, channels in before["removed"].items() for channel in channels}
        assert len(removed & recorded) / len(removed | recorded) > 0.97, name
        for accuracy in ACCURACIES[1:3]:
            assert trial[accuracy] == pytest.approx(before[accuracy], abs=8 / 400), (name, accuracy)
