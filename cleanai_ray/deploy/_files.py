"""Tools of every export format: a private copy of the model, and a check against torch."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cleanai_ray.errors import ArtifactError
from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.hooks import require_no_hooks

TOLERANCE = 1e-4
"""Largest difference allowed between an exported model and torch, as a share of the largest output (or of 1)."""

_CHECK_BATCH = 3
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

F = TypeVar("F", bound=Callable[..., Any])


def file_suffix(suffix: str, *, needs_images: bool = False) -> Callable[[F], F]:
    """Return a decorator that stores an export format's usual file suffix as the function's `suffix`.

    Args:
        suffix: The suffix, with its dot.
        needs_images: True if the function takes calibration batches after the path; stored under the same name.
    """

    def decorate(function: F) -> F:
        function.suffix = suffix  # type: ignore[attr-defined]
        function.needs_images = needs_images  # type: ignore[attr-defined]
        return function

    return decorate


def private_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the CPU in evaluation mode; the model itself is not touched.

    Raises:
        EvaluationError: When a hook is left on the model.
    """
    require_no_hooks(model)
    return copied(model).cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def check_batch(example_input: Tensor) -> Tensor:
    """Return a random batch, of another size than models are traced with; of integers, the example's own."""
    if not example_input.is_floating_point():
        rolled = [example_input[:1].roll(place, -1) for place in range(_CHECK_BATCH)]
        return torch.cat(rolled)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_CHECK_BATCH, *example_input.shape[1:], generator=generator, dtype=example_input.dtype)


def reason_of(error: BaseException) -> str:
    """Return the first line that says why: of the error that caused an error, or its kind if it says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -") for line in _COLOURS.sub("", str(error)).strip().splitlines()]
    if len(lines) > 1 and lines[0].startswith("Constraints violated"):
        return lines[1]
    return lines[0] if lines else type(error).__name__


def require_same_output(expected: Tensor, found: Tensor, file_format: str) -> None:
    """Compare an exported model's output with torch's.

    Raises:
        ArtifactError: When they differ by more than `TOLERANCE`, or are not finite.
    """
    if expected.shape != found.shape:
        raise ArtifactError(
            f"{file_format}: the exported model's output is {tuple(found.shape)}, torch's is {tuple(expected.shape)}"
        )
    difference = (expected - found).abs().max().item()
    allowed = TOLERANCE * max(1.0, expected.abs().max().item())
    if not difference <= allowed:
        raise ArtifactError(
            f"{file_format}: the exported model differs from torch by {difference:.3g}, allowed is {allowed:.3g}"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporters print, log and warn."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
