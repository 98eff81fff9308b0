"""The folder that `cleanai export --format transformers` makes of a trial of a language model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cleanai_ray import api
from cleanai_ray.cli import main
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.models import build_model, example_input
from cleanai_ray.pruning.saved_model import load_model, save_model
from cleanai_ray.stages.export_run import _add_tokenizer
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.tasks.base import find_task

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TASK = "language_modelling"
MODEL: dict[str, Any] = {
    "factory": "cleanai_ray.models.small_llama:build",
    "num_classes": 40,
    "input_shape": [12],
    "options": {"width": 32, "hidden": 64, "heads": 4, "depth": 2},
}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("words.json", b'{"model": {}}', "tokenizer.json"),
        ("words", b' {"model": {}}', "tokenizer.json"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
        ("tokenizer.model", b"\n\x0e", "tokenizer.model"),
        ("vocab.json", b"{}", "vocab.json"),
        ("words.model", b"\n\x0e", None),
    ],
)
def test_a_tokenizer_has_the_name_by_which_transformers_knows_it(
    name: str, content: bytes, expected: str | None, tmp_path: Path
) -> None:
    folder, given = tmp_path / "small", tmp_path / name
    folder.mkdir()
    given.write_bytes(content)
    study = {"data": {"options": {"tokenizer": str(given)}}}
    _add_tokenizer(folder, study)
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == ({expected: content} if expected else {})
    given.write_bytes(b"{}of another")
    _add_tokenizer(folder, study)
    if expected:
        assert (folder / expected).read_bytes() == content


def test_a_trial_becomes_a_folder_with_tokenizer_and_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"yes": 0, "no": 1}, unk_token="no"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words.json"))
    run, section, task = RunDirectory(tmp_path / "run"), ModelSection(**MODEL), find_task(TASK)
    tokens = example_input(section, batch_size=2, task=task)
    result = api.prune(build_model(section, task=task), tokens[:1], method="magnitude", ratio=0.5, task=TASK)
    row = {"trial_id": "the-trial", "status": schemas.OK, "method": "magnitude", "label": "magnitude", "mode": "local"}
    row |= {"ratio": 0.5, "accuracy": 0.1, "accuracy_dense": 0.2, "metric": "perplexity", "score": 10.0}
    row |= {"score_dense": 5.0, "num_evaluated": 100, "params": 500, "params_dense": 1000, "macs": 3000}
    row |= {"macs_dense": 12000, "size_bytes": 2000, "size_bytes_dense": 4000, "warnings": [], "num_classes": 40}
    run.write_table(schemas.RESULTS_FILE, schemas.to_table([row], schemas.RESULTS))
    study = {
        "name": "words",
        "task": {"name": TASK},
        "model": {**MODEL, "weights": None},
        "data": {"name": "text_files", "root": str(tmp_path), "options": {"tokenizer": str(tmp_path / "words.json")}},
        "sweep": {"methods": ["magnitude"], "ratios": [0.5]},
    }
    run.write_text("study.yaml", yaml.safe_dump(study))
    run.write_json("environment.json", {"version": "9.8.7"})
    save_model(result.model, result.plan, run, "models/the-trial")

    out = tmp_path / "small"
    words = ["export", run.location, "--trial", "the-trial", "--format", "transformers", "--out", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{out}\n"
    found = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    expected = load_model(build_model(section, task=task), run, "models/the-trial").eval()
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, expected(tokens).logits, rtol=0, atol=1e-6)
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 32
    assert transformers.PreTrainedTokenizerFast.from_pretrained(out)("yes no yes")["input_ids"] == [0, 1, 0]
    card = (out / "README.md").read_text()
    for fact in ("library_name: transformers", "LlamaForCausalLM.from_pretrained(", "tensor [N, 12]", "10.0"):
        assert fact in card, fact
    assert "from model import load" not in card
