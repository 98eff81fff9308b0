from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.errors import ArtifactError
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.training.context import LocalContext
from cleanai_ray.training.data import TrainingData
from cleanai_ray.training.fine_tune import fine_tune


class StoredFile:
    """A checkpoint store that is one file of a run directory."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDirectory(folder)

    def save(self, content: bytes, part: str = "") -> None:
        self.run.write_bytes(f"t{part}.pt", content)

    def load(self, part: str = "") -> bytes | None:
        return self.run.read_bytes(f"t{part}.pt") if self.run.exists(f"t{part}.pt") else None


def test_checkpoints_in_a_run_directory_come_back(tmp_path: Path) -> None:
    store = StoredFile(tmp_path / "run")
    context = LocalContext(checkpoints=store)
    assert context.load_checkpoint() is None
    context.save_checkpoint({"epoch": 1, "weights": {"a": torch.arange(3.0)}})
    context.save_checkpoint({"epoch": 2, "weights": {"a": torch.arange(4.0)}})
    state = context.load_checkpoint()
    assert state is not None
    assert state["epoch"] == 2
    assert torch.equal(state["weights"]["a"], torch.arange(4.0))
    store.run.delete("t.pt")
    assert context.load_checkpoint() is None


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    store = StoredFile(tmp_path)
    store.save(b"not a checkpoint")
    with pytest.raises(ArtifactError, match="a checkpoint of 16 bytes cannot be read"):
        LocalContext(checkpoints=store).load_checkpoint()


def test_a_training_whose_checkpoint_is_damaged_begins_anew(
    tmp_path: Path, digits: Any, make_net: Callable[..., nn.Sequential]
) -> None:
    store = StoredFile(tmp_path)
    store.save(b"not a checkpoint")
    section = FineTuneSection.model_validate({"epochs": 1, "learning_rate": 0.1})
    arguments = {"data": TrainingData(**digits.arguments()), "section": section, "seed": 0}
    damaged, untouched = make_net(), make_net()
    result = fine_tune(damaged, **{**arguments, "context": LocalContext(checkpoints=store)})
    fine_tune(untouched, **{**arguments, "context": LocalContext()})
    assert result.epochs_run == 1
    assert all(torch.equal(untouched.state_dict()[name], value) for name, value in damaged.state_dict().items())


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (target,)

    context = LocalContext(checkpoints=StoredFile(tmp_path))
    context.save_checkpoint({"value": Malicious()})
    with pytest.raises(ArtifactError):
        context.load_checkpoint()
    assert not target.exists()


def test_fine_tuning_resumes_from_a_run_directory(
    tmp_path: Path, digits: Any, make_net: Callable[..., nn.Sequential]
) -> None:
    section = FineTuneSection.model_validate({"epochs": 2, "learning_rate": 0.1, "save_every_n_epochs": 1})
    context = LocalContext(checkpoints=StoredFile(tmp_path))
    arguments = {"data": TrainingData(**digits.arguments()), "section": section, "context": context, "seed": 0}
    first, second = make_net(), make_net(5)
    fine_tune(first, **arguments)
    start = copy.deepcopy(second.state_dict())
    fine_tune(second, **arguments)
    assert not torch.equal(start["0.weight"], second[0].weight)
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())
