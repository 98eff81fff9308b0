"""An ONNX file as a torch module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.deploy.onnx import open_session


class OnnxModel(nn.Module):
    """Runs an ONNX model on batches with onnxruntime: on the CPU, whatever device the batches are on.

    It has no parameters and no buffers, and computes the same in training and evaluation mode.

    Args:
        content: Content of the file. The model has one input and one output tensor.
        threads: Threads within an operation; 0: as many as onnxruntime chooses.
    """

    def __init__(self, content: bytes, threads: int = 0) -> None:
        super().__init__()
        self.content = content
        self._threads = threads
        self._run = open_session(content, threads=threads)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the parts to rebuild it from, since every process needs a session of its own."""
        return OnnxModel, (self.content, self._threads)

    def forward(self, images: Tensor) -> Tensor:
        """Return the output [N, ...] for images [N, ...], on the images' device."""
        return torch.from_numpy(self._run(images.detach().cpu())).to(images.device)
