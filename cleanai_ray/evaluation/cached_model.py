"""A cache of a model's outputs: for the dense model, which every trial of a worker is compared with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MAX_BYTES = 2**26
"""Most bytes of outputs that are kept of a model; further outputs are computed each time."""


@dataclass
class _Answers:
    by_batch: dict[bytes, Tensor] = field(default_factory=dict)
    num_bytes: int = 0


_answers: WeakKeyDictionary[nn.Module, _Answers] = WeakKeyDictionary()


class CachedModel(nn.Module):
    """Returns the output of a batch that the model has seen before without running it again, on CPUs.

    Outputs are kept in this process for as long as the model exists. The key of a batch is the digest of its pixels, so
    it does not matter which images of a batch can be read. On other devices, computing the digest would wait for the
    device longer than the model takes: there the model runs each time.

    Args:
        model: Maps images [N, ...] to logits [N, classes]; its weights must not change afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._known = _answers.setdefault(model, _Answers())

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's output."""
        if images.device.type != "cpu" or self.training or torch.is_grad_enabled():
            return self.model(images)
        key = hashlib.sha256(images.contiguous().numpy().data).digest() + repr(images.shape).encode()
        answer = self._known.by_batch.get(key)
        if answer is None:
            answer = self.model(images)
            if self._known.num_bytes + answer.nbytes <= MAX_BYTES:
                self._known.by_batch[key] = answer.clone()
                self._known.num_bytes += answer.nbytes
        return answer
