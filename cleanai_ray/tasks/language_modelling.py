"""Language modelling: the next token at every position.

torchmetrics' Perplexity is not used: it takes logarithms of float32 probabilities, so that one improbable token makes
the perplexity infinite, and adds up over batches in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import EvaluationError
from cleanai_ray.nn.view import as_model, as_network, own_forward
from cleanai_ray.registry import TASKS
from cleanai_ray.tasks.base import Reduce, Scorer
from cleanai_ray.tasks.dense_labels import DenseLabels
from cleanai_ray.tasks.score import NoLabelError, TaskScore

_IGNORED = -100


class Perplexity(Scorer):
    """exp of the mean negative log-likelihood of the tokens that are not ignored, from sums on the device."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def add(self, predicted: Tensor, targets: Tensor) -> None:
        """Add a batch: logits [N, vocabulary, T] and tokens [N, T]; -100 is ignored."""
        loss = functional.cross_entropy(predicted.float(), targets, ignore_index=_IGNORED, reduction="sum").double()
        self._sums.append(torch.stack([loss, (targets != _IGNORED).sum(), torch.full_like(loss, len(targets))]))

    def result(self, all_reduce: Reduce | None = None) -> TaskScore:
        """Return the perplexity; its merit is the inverse, the geometric mean of the tokens' probabilities."""
        if not self._sums:
            raise EvaluationError("there are 0 batches to evaluate on, at least 1 is needed")
        sums = torch.stack(self._sums).sum(0)
        loss, tokens, num_samples = (sums if all_reduce is None else all_reduce(sums)).tolist()
        if tokens == 0:
            raise NoLabelError(f"all tokens are {_IGNORED}, which is ignored; at least 1 other is needed")
        mean = loss / tokens
        return TaskScore("perplexity", _exp(mean), _exp(-mean), mean, int(num_samples))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _token_logits(network: nn.Module, tokens: Tensor) -> Tensor:
    return _logits(own_forward(network)(tokens)).transpose(1, 2)


def _logits(outputs: Any) -> Tensor:
    """Return the logits [N, T, vocabulary] of an output, or of an output of `transformers`."""
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
    return logits


@TASKS.register("language_modelling")
class LanguageModelling(DenseLabels):
    """Language modelling: tokens [N, T] and the token that follows each, -100 to ignore it; perplexity.

    A model maps tokens to logits [N, T, vocabulary], or to an object with such `logits`, as causal language models of
    `transformers` do. Hidden layers of feed-forward blocks and whole heads of attention are pruned. The residual stream
    is not: the embeddings keep their width, and with them every layer whose output is added to them.
    """

    name = "language_modelling"
    metric_name = "perplexity"
    ignore_index = _IGNORED

    def network(self, model: nn.Module) -> nn.Module:
        """Return a view of the model that returns logits [N, vocabulary, T]."""
        return as_network(model, _token_logits)

    def restored(self, network: nn.Module) -> nn.Module:
        """Return the model itself."""
        return as_model(network)

    def ignored_layers(self, model: nn.Module) -> tuple[str, ...]:
        """Return the names of the embeddings."""
        return tuple(name for name, module in model.named_modules() if isinstance(module, nn.Embedding))

    def example_input(self, shape: Sequence[int]) -> Tensor:
        """Return tokens, all of them 0."""
        return torch.zeros(tuple(shape), dtype=torch.int64)

    def as_inputs(self, noise: Tensor, num_classes: int) -> Tensor:
        """Return tokens of a vocabulary of `num_classes`, drawn by the noise."""
        return (noise.abs() * 1e6).long() % num_classes

    def logits(self, outputs: Any) -> Tensor:
        """Return the logits [N, vocabulary, T]."""
        return _logits(outputs).transpose(1, 2)

    def predict(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the logits [N, vocabulary, T]."""
        outputs = model(inputs)
        logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != targets.shape:
            found = list(logits.shape) if isinstance(logits, Tensor) else type(outputs).__name__
            expected = f"[{', '.join(map(str, targets.shape))}, vocabulary]"
            raise EvaluationError(f"the model's output is {found}, allowed is {expected}, or `logits` of that shape")
        return logits.transpose(1, 2)

    def new_scorer(self) -> Scorer:
        """Return a scorer without samples."""
        return Perplexity()
