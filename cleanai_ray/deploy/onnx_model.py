"""The content of an ONNX file as a torch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.deploy.onnx import open_session


class OnnxModel(nn.Module):
    """Runs the content of an ONNX file on batches by onnxruntime, on the CPU, wherever the batches are.

    It has neither parameters nor buffers, and computes the same in both modes.

    Args:
        content: The file's content; its input and its output are one tensor each.
        threads: Threads within an operation; 0: as many as onnxruntime chooses.
    """

    def __init__(self, content: bytes, threads: int = 0) -> None:
        super().__init__()
        self.content = content
        self._threads = threads
        self._run = open_session(content, threads=threads)

    def __reduce__(self) -> tuple[Any, ...]:
        """A session stays in its process: another opens its own."""
        return OnnxModel, (self.content, self._threads)

    def forward(self, images: Tensor) -> Tensor:
        """Return the output [N, ...] for images [N, ...], on the device that they are on."""
        return torch.from_numpy(self._run(images.detach().cpu())).to(images.device)
