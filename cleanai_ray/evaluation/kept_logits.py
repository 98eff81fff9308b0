"""Logits of one model, kept by sample: of the dense one, with which every trial of a study is compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from cleanai_ray.errors import ArtifactError


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptLogits:
    """Logits of a model on the samples that it was run on: 200 MB for ImageNet's 50,000 images and 1,000 classes.

    Processes on one machine can share the arrays: they are never written to.

    Attributes:
        numbers: Indices of the samples in their split, int64 [N], ascending; samples that could not be read are absent.
        values: Their logits, float32 [N, classes].
        labels: Their classes, int64 [N]; None where they were not kept.
    """

    numbers: np.ndarray
    values: np.ndarray
    labels: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.values.shape[1])

    @property
    def correct(self) -> np.ndarray | None:
        """True for the samples that the model gets right, bool [N]; None where labels were not kept."""
        if self.labels is None:
            return None
        return np.asarray(self.values.argmax(axis=1) == self.labels)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the samples, their labels and the model's answers."""
        hasher = hashlib.sha256(self.numbers.tobytes())
        hasher.update(b"" if self.labels is None else self.labels.tobytes())
        hasher.update(self.values.argmax(axis=1).astype(np.int64).tobytes() if self.values.size else b"")
        return hasher.hexdigest()[:16]

    def places_of(self, numbers: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of samples, int64 [N], and a mask [N] of those that are there; other rows mean nothing.

        Args:
            numbers: Indices of samples, int64 [N], on the CPU.
        """
        wanted = numbers.numpy()
        if not len(self.numbers):
            return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
        places = np.searchsorted(self.numbers, wanted).clip(max=len(self.numbers) - 1)
        return places, self.numbers[places] == wanted

    def rows(self, numbers: Tensor, device: torch.device) -> Tensor:
        """Return the logits of samples, float32 [N, classes], on a device, without waiting for it.

        Raises:
            KeyError: When there are none of a sample.
        """
        places, are_there = self.places_of(numbers)
        if not are_there.all():
            raise KeyError(f"there are no logits of sample {numbers.numpy()[~are_there][0]}")
        rows = torch.from_numpy(self.values[places])
        return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file."""
        labels = {} if self.labels is None else {"labels": self.labels}
        return safetensors.numpy.save({"numbers": self.numbers, "values": self.values, **labels})

    @classmethod
    def from_bytes(cls, content: bytes) -> KeptLogits:
        """Return the logits in the content of a file.

        Raises:
            ArtifactError: When it is not such a file.
        """
        try:
            return cls(**safetensors.numpy.load(content))
        except (SafetensorError, TypeError) as error:
            raise ArtifactError(f"a file of {len(content)} bytes holds no logits: {error}") from error


class LogitsKeeper:
    """Collects logits batch by batch, in host memory; nothing waits for the device before `result`.

    Args:
        num_samples: Most samples that will be added.
    """

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._numbers: list[np.ndarray] = []
        self._labels: list[Tensor] = []
        self._values: Tensor | None = None
        self._device = torch.device("cpu")

    def add(self, numbers: Tensor, logits: Tensor, labels: Tensor | None = None) -> None:
        """Add a batch: the indices of its samples int64 [N], on the CPU, the logits [N, classes] and the labels [N].

        Labels are kept if every batch has them.
        """
        on_cuda = logits.device.type == "cuda"
        if self._values is None:
            self._device = logits.device
            self._values = torch.empty(self._num_samples, logits.shape[1], pin_memory=on_cuda)
        start = sum(map(len, self._numbers))
        self._values[start : start + len(logits)].copy_(logits, non_blocking=on_cuda)
        self._numbers.append(numbers.numpy())
        self._labels += [] if labels is None else [labels]

    def result(self) -> KeptLogits:
        """Return the logits, ordered by sample."""
        if self._values is None:
            return KeptLogits(numbers=np.zeros(0, dtype=np.int64), values=np.zeros((0, 0), dtype=np.float32))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        numbers = np.concatenate(self._numbers)
        order = np.argsort(numbers)
        labels = torch.cat(self._labels).cpu().numpy() if len(self._labels) == len(self._numbers) else None
        return KeptLogits(
            numbers=numbers[order],
            values=self._values[: len(numbers)].numpy()[order],
            labels=None if labels is None else labels[order],
        )
