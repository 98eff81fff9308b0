"""Numerical settings of this process, as a study asks for them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from cleanai_ray.config.numerics import NumericsSection

_CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_WORKSPACE = ":4096:8"
"""Buffers of a fixed size, with which cuBLAS gives the same bits; it reads the variable when it is first used."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    matmul_precision: str
    convolution_tf32: bool
    cudnn_benchmark: bool
    cudnn_deterministic: bool
    deterministic: bool
    cublas_workspace: str | None

    @classmethod
    def read(cls) -> _Settings:
        cudnn = torch.backends.cudnn
        return cls(
            matmul_precision=torch.get_float32_matmul_precision(),
            convolution_tf32=cudnn.allow_tf32,
            cudnn_benchmark=cudnn.benchmark,
            cudnn_deterministic=cudnn.deterministic,
            deterministic=torch.are_deterministic_algorithms_enabled(),
            cublas_workspace=os.environ.get(_CUBLAS_VARIABLE),
        )

    def write(self) -> None:
        """Make torch's settings these; those that are so already are not touched."""
        now, cudnn = self.read(), torch.backends.cudnn
        if now.matmul_precision != self.matmul_precision:
            torch.set_float32_matmul_precision(self.matmul_precision)
        if now.deterministic != self.deterministic:
            torch.use_deterministic_algorithms(self.deterministic)
        cudnn.allow_tf32 = self.convolution_tf32
        cudnn.benchmark = self.cudnn_benchmark
        cudnn.deterministic = self.cudnn_deterministic
        if self.cublas_workspace is None:
            os.environ.pop(_CUBLAS_VARIABLE, None)
        else:
            os.environ[_CUBLAS_VARIABLE] = self.cublas_workspace


_before: _Settings | None = None
"""The settings of this process before a study changed them."""


def apply_numerics(section: NumericsSection) -> None:
    """Make the settings of this process those of a study; keys that are null stay as they were before any study.

    Processes that compute call it before they do. `deterministic` also sets CUBLAS_WORKSPACE_CONFIG, unless it is set,
    which works until cuBLAS is first used.
    """
    global _before
    if _before is None:
        if not section.changed:
            return
        _before = _Settings.read()
    products = {None: _before.matmul_precision, True: "high", False: "highest"}[section.tf32]
    benchmark = False if section.deterministic else _before.cudnn_benchmark
    workspace = _before.cublas_workspace
    _Settings(
        matmul_precision=section.matmul_precision or products,
        convolution_tf32=_before.convolution_tf32 if section.tf32 is None else section.tf32,
        cudnn_benchmark=benchmark if section.cudnn_benchmark is None else section.cudnn_benchmark,
        cudnn_deterministic=section.deterministic or _before.cudnn_deterministic,
        deterministic=section.deterministic or _before.deterministic,
        cublas_workspace=(workspace or _CUBLAS_WORKSPACE) if section.deterministic else workspace,
    ).write()


def restore_numerics() -> None:
    """Make the settings of this process those that it had before any study."""
    apply_numerics(NumericsSection())


def describe_numerics() -> dict[str, Any]:
    """Return the settings of this process, as torch tells them."""
    found = _Settings.read()
    return {
        "matmul_precision": found.matmul_precision,
        "tf32_in_convolutions": found.convolution_tf32,
        "deterministic": found.deterministic,
        "cudnn_benchmark": found.cudnn_benchmark,
    }
