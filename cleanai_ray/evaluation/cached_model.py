"""A model that remembers what it answered: the dense one, which every trial of a worker is compared with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MAX_BYTES = 2**26
"""What is remembered of a model at the most; what comes after that is computed each time."""


@dataclass
class _Answers:
    by_batch: dict[bytes, Tensor] = field(default_factory=dict)
    num_bytes: int = 0


_answers: WeakKeyDictionary[nn.Module, _Answers] = WeakKeyDictionary()


class CachedModel(nn.Module):
    """Answers a batch that the model has seen before without running it, where that is on the CPU.

    What is remembered lives as long as the model, in this process. Batches are told apart by the digest of their
    pixels, so that nothing has to be kept in step with which images can be read. On other devices the digest would wait
    for the device, for longer than the model takes: there the model runs each time.

    Args:
        model: Maps images [N, ...] to logits [N, classes]; its weights must not change any more.
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
