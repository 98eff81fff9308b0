"""The architectures of the zoo, with random weights and small inputs, and what is expected of each.

Expected is `pruned`: every group loses the asked share, exactly; `keeps`: some layers keep their width, and warnings
name them; or a part of the sentence by which the architecture is refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

PRUNED, KEEPS = "pruned", "keeps"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture.

    Attributes:
        source: The package that has it: `timm`, `torchvision`, `transformers` or `own`, which the tests define.
        name: Its name there.
        shape: One input without the batch dimension; of timm, the model's own where it cannot be built for it.
        expected: The outcome at ratio 0.3; empty where the test suite does not ask for one.
        options: Arguments of the constructor or configuration.
    """

    source: str
    name: str
    shape: tuple[int, ...] = (3, 64, 64)
    expected: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def build(architecture: Architecture) -> tuple[nn.Module, Tensor]:
    """Return the network with random weights, in evaluation mode, and a batch of two inputs.

    Raises:
        ImportError: When the package is not installed.
    """
    torch.manual_seed(0)
    model, shape = _BUILDERS[architecture.source](architecture)
    if architecture.source == "transformers" and len(shape) == 1:
        inputs = torch.randint(0, 99, (2, *shape), generator=torch.Generator().manual_seed(1))
    else:
        inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    awaken(model, inputs)
    return model.eval(), inputs


@torch.no_grad()
def awaken(model: nn.Module, inputs: Tensor) -> None:
    """Let outputs depend on inputs through every block: no scale of zero or a millionth, norms that fit their input."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        constant = bool((parameter == parameter.flatten()[0]).all())
        if constant and (parameter.numel() > 1 or not parameter.any()):
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.train().momentum = 1.0
        model(torch.cat([inputs, inputs.roll(1, -1)]))
    except (ValueError, RuntimeError):  # It needs more than one value a channel to train.
        pass
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
        if norm.running_var is not None:  # A channel that never changes would make rounding 300 times larger.
            norm.running_var.clamp_min_(0.01 * float(norm.running_var.mean()))


def _timm(architecture: Architecture) -> tuple[nn.Module, tuple[int, ...]]:
    timm = importlib.import_module("timm")
    shape, options = architecture.shape, {"pretrained": False, "num_classes": 10, **architecture.options}
    config = timm.get_pretrained_cfg(architecture.name)
    own = tuple(config.input_size) if config is not None else shape
    if config is None or not config.fixed_input_size:
        return timm.create_model(architecture.name, **options), shape
    try:
        return timm.create_model(architecture.name, img_size=shape[-1], **options), shape
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return timm.create_model(architecture.name, **options), own


def _torchvision(architecture: Architecture) -> tuple[nn.Module, tuple[int, ...]]:
    models = importlib.import_module("torchvision.models")
    options = {"weights": None, "num_classes": 10, **architecture.options}
    return models.get_model(architecture.name, **options), architecture.shape


def _transformers(architecture: Architecture) -> tuple[nn.Module, tuple[int, ...]]:
    transformers = importlib.import_module("transformers")
    head, _, kind = architecture.name.partition(" ")
    config = getattr(transformers, f"{head}Config")(**architecture.options)
    return getattr(transformers, f"{head}{kind or 'ForImageClassification'}")(config), architecture.shape


def _own(architecture: Architecture) -> tuple[nn.Module, tuple[int, ...]]:
    networks = importlib.import_module("zoo_networks")
    return getattr(networks, architecture.name)(**architecture.options), architecture.shape


_BUILDERS: dict[str, Callable[[Architecture], tuple[nn.Module, tuple[int, ...]]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "own": _own,
}
