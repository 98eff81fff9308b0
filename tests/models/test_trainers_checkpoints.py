"""Weights as trainers write them: nested, with words before names, beside an optimiser, and what is said of it."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cleanai_ray.config.sections import ModelSection
from cleanai_ray.errors import ModelError
from cleanai_ray.models import build_model, load_weights
from cleanai_ray.models.checkpoints import take_weights


def network(outputs: int = 3) -> nn.Sequential:
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4, outputs))


@pytest.fixture
def trained() -> nn.Sequential:
    """A network whose every tensor differs from that of a new one."""
    model = network()
    with torch.no_grad():
        for number, value in enumerate(model.state_dict().values()):
            value.copy_(torch.full_like(value, number + 1))
    return model


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    """What Lightning 2 writes of a module with the network as `model` and a loss with weights."""
    return {
        "epoch": 4,
        "global_step": 500,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(3)},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_acc'}": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": []}],
        "hyper_parameters": {"lr": 0.1},
    }


def of_script(state: dict[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """What PyTorch's own training scripts write, with DDP."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(value.sum() for value in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return {
        "epoch": 90,
        "arch": "net",
        "state_dict": prefixed(state, "module."),
        "best_acc1": np.float64(71.5),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, output_dir=Path("runs")),
    }


FORMS = {
    "lightning": lambda state, _: lightning(state),
    "ddp script": of_script,
    "compiled": lambda state, _: prefixed(state, "_orig_mod."),
    "ddp of compiled": lambda state, _: {"model": prefixed(state, "module._orig_mod.")},
    "lightning of compiled": lambda state, _: {"state_dict": prefixed(state, "net._orig_mod.")},
    "a compiled layer": lambda state, _: {name.replace("0.", "0._orig_mod."): value for name, value in state.items()},
    "model_state_dict": lambda state, _: {"model_state_dict": state, "loss": 0.3},
    "deep": lambda state, _: {"checkpoint": {"nets": {"student": state}}},
    "average only": lambda state, _: {"model_ema": prefixed(state, "module.")},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_network_is_found_in_what_its_trainer_wrote(tmp_path, trained, form):
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    torch.save(FORMS[form](state, network()), tmp_path / "w.pt")
    model = network()
    load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_averaged_model_is_read_without_its_counter(tmp_path, trained):
    torch.save(AveragedModel(trained).state_dict(), tmp_path / "w.pt")
    model = network()
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model[0].weight, trained[0].weight)


def test_the_model_may_have_words_before_names_that_the_file_has_not(tmp_path, trained):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

    torch.save(trained.state_dict(), tmp_path / "w.pt")
    model = Wrapped()
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.body[5].weight, trained[5].weight)


def test_what_was_taken_renamed_and_left_out_is_told_in_a_line(tmp_path, trained, caplog):
    torch.save(lightning(trained.state_dict()), tmp_path / "told.ckpt")
    with caplog.at_level(logging.WARNING):
        load_weights(network(), tmp_path / "told.ckpt")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"model.weights '{tmp_path / 'told.ckpt'}': 9 tensors, taken from 'state_dict'; 'model.' dropped before names; "
        "left out: criterion.weight, epoch, global_step and 5 more"
    )


def test_a_file_that_needs_nothing_is_not_talked_about(tmp_path, trained, caplog):
    torch.save(trained.state_dict(), tmp_path / "silent.pt")
    with caplog.at_level(logging.WARNING):
        load_weights(network(), tmp_path / "silent.pt")
    assert caplog.records == []


def test_the_weights_come_before_their_average_unless_asked_for(tmp_path, trained):
    plain, average = trained.state_dict(), {name: value + 100 for name, value in trained.state_dict().items()}
    torch.save({"model_ema": prefixed(average, "module."), "model": plain}, tmp_path / "w.pt")
    for key, expected in ((None, plain), ("model_ema", average), ("model", plain)):
        model = network()
        load_weights(model, tmp_path / "w.pt", key)
        assert torch.equal(model[0].weight, expected["0.weight"])
    taken = take_weights({"model_ema": average, "model": plain}, plain.keys())
    assert not isinstance(taken, str)
    assert "'model_ema' fits as well (model.weights_key takes it)" in taken.sentence


def test_a_key_can_be_words_before_names_or_a_path(tmp_path, trained):
    other = {name: value + 100 for name, value in trained.state_dict().items()}
    both = {**prefixed(trained.state_dict(), "student."), **prefixed(other, "teacher.")}
    torch.save({"state_dict": both}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"in several ways; needed: model\.weights_key, 'state_dict\.student' or"):
        load_weights(network(), tmp_path / "w.pt")
    for key in ("teacher", "state_dict.teacher"):
        model = network()
        load_weights(model, tmp_path / "w.pt", key)
        assert torch.equal(model[0].weight, other["0.weight"])
    with pytest.raises(ModelError, match=r"has no weights at 'ema', model\.weights_key; allowed: .*student"):
        load_weights(network(), tmp_path / "w.pt", "ema")


def test_a_head_of_another_size_is_named(tmp_path):
    torch.save({"state_dict": prefixed(network(7).state_dict(), "module.")}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"its head '5' has 7 outputs \(expected 3, model\.num_classes; "):
        load_weights(network(), tmp_path / "w.pt")


def test_layers_too_many_within_the_model_are_an_error(tmp_path, trained):
    torch.save({"state_dict": prefixed({**trained.state_dict(), "9.weight": torch.ones(2)}, "model.")}, tmp_path / "w")
    with pytest.raises(ModelError, match=r"9\.weight is not in the model"):
        load_weights(network(), tmp_path / "w")


@pytest.mark.parametrize("form", ["model", "nested model", "namespace of a class"])
def test_what_needs_unpickling_is_converted_by_the_command_that_the_error_names(tmp_path, trained, form):
    path, out = tmp_path / "w.pt", tmp_path / "weights.safetensors"
    content = {
        "model": trained,
        "nested model": {"epoch": 1, "model": trained},
        "namespace of a class": {"state_dict": trained.state_dict(), "args": argparse.Namespace(loss=nn.ReLU())},
    }[form]
    torch.save(content, path)
    with pytest.raises(ModelError, match=r"unpickling that can run code") as caught:
        load_weights(network(), path)
    assert f"`python -m cleanai_ray.models.convert {path} weights.safetensors`" in str(caught.value)
    command = [sys.executable, "-m", "cleanai_ray.models.convert", str(path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("9 tensors")
    assert torch.equal(load_file(out)["0.weight"], trained[0].weight)
    assert out.stat().st_mode == path.stat().st_mode  # as torch and every other program write a file
    load_weights(network(), out)


def test_a_section_reads_a_checkpoint(tmp_path):
    plain = ModelSection(name="resnet20", input_shape=(1, 8, 8))
    state = build_model(plain, seed=3).state_dict()
    torch.save(lightning(state) | {"ema": {"x": 1}}, tmp_path / "w.ckpt")
    loaded = build_model(plain.model_copy(update={"weights": str(tmp_path / "w.ckpt"), "weights_key": "state_dict"}))
    assert torch.equal(loaded.state_dict()["fc.weight"], state["fc.weight"])
