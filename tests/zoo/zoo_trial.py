"""One architecture tried: pruned at a ratio and to a budget, checked, saved and loaded."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from zoo_architectures import KEEPS, PRUNED, Architecture, build
from zoo_processes import LIMIT

import cleanai_ray as cleanai
from cleanai_ray.errors import CleanAIError
from cleanai_ray.graph import checking
from cleanai_ray.nn.calls import tensors_in

RATIO, MACS, EXACT = 0.3, 0.5, 1e-4
LEAST_MACS = 0.48

Note = Callable[[str, Any], None]
"""Takes a finding by name as soon as it is there, so that what was found before a time limit is known."""


def try_architecture(architecture: Architecture, note: Note) -> None:
    """Try everything on one architecture, and note what is found; nothing is raised.

    Args:
        architecture: The architecture.
        note: Takes `outcome` (`pruned`, `keeps`, `refused`, `wrong`, `crashed` or `missing`), `told`, `groups`,
            `macs`, `error`, `warnings`, `loads`, `half`, `half_error`, `seconds` of both, and `ended` where one of both
            took longer than `LIMIT`.
    """
    warnings.simplefilter("ignore")
    try:
        model, inputs = build(architecture)
    except ImportError as error:
        note("outcome", "missing")
        note("told", str(error))
        return
    start = time.process_time()
    note("input", list(inputs.shape[1:]))
    worst = _recorded_differences()
    try:
        result = cleanai.prune(model, inputs, method="magnitude", ratio=RATIO, round_to=None)
    except CleanAIError as error:
        note("outcome", "refused")
        note("told", str(error))
        note("seconds", time.process_time() - start)
        return
    except Exception as error:  # Whatever else is raised is a fault.
        note("outcome", "crashed")
        note("told", f"{type(error).__name__}: {error}")
        return
    apart = max(worst, default=0.0)
    note("error", apart)
    note("groups", len(result.plan.groups))
    note("macs", result.plan.achieved["macs"] / result.plan.achieved["macs_dense"])
    note("warnings", list(result.plan.warnings))
    note("seconds", time.process_time() - start)
    kept = [told for told in result.plan.warnings if "width" in told or "keep" in told]
    short = [
        name
        for name, share, unit in _shares(result)
        if not RATIO - unit < share < RATIO + unit and not (kept and share == 0)
    ]
    exact = apart < EXACT and not short
    note("outcome", (KEEPS if kept else PRUNED) if exact else "wrong")
    note("told", f"groups {short} lost another share" if short else "; ".join(kept))
    note("loads", _loads(result, architecture, inputs))
    begun = time.process_time()
    note("half", _half(model, inputs))
    note("half_error", max(worst, default=0.0))
    end = time.process_time()
    note("seconds", end - start)
    if (longest := max(begun - start, end - begun)) > LIMIT:
        note("ended", f"not done within {LIMIT} s of processor time, but {longest:.0f} s")


def _recorded_differences() -> list[float]:
    """Return a list that holds the differences of the last semantic check, each as a share of the largest value."""
    found: list[float] = []
    judge = checking.difference

    def difference(expected: Any, reading: Any) -> str | None:
        found.clear()
        for (_, wanted), (_, value) in zip(expected, reading, strict=False):
            if wanted.shape == value.shape and wanted.is_floating_point() and wanted.numel():
                apart = (torch.nan_to_num(wanted) - torch.nan_to_num(value)).abs().max()
                found.append(float(apart / torch.nan_to_num(wanted).abs().max().clamp_min(1e-12)))
        return judge(expected, reading)

    checking.difference = difference  # type: ignore[assignment]
    return found


def _shares(result: cleanai.PruneResult) -> list[tuple[str, float, float]]:
    """Return of every group its name, the share that went, and the share of one unit."""
    return [(g.name, len(g.removed) / g.num_channels, g.num_blocks / g.num_channels + 1e-9) for g in result.plan.groups]


def _loads(result: cleanai.PruneResult, architecture: Architecture, inputs: Tensor) -> str:
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            cleanai.save(result, folder)
            loaded = cleanai.load(folder, lambda: build(architecture)[0]).eval()
            pairs = zip(tensors_in(loaded(inputs)), tensors_in(result.model.eval()(inputs)), strict=True)
            return "yes" if all(torch.equal(one, other) for one, other in pairs) else "another output"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _half(model: nn.Module, inputs: Tensor) -> str:
    """Return the share of the MACs that is left at half of them, or why it cannot be reached."""
    try:
        result = cleanai.prune(model, inputs, method="magnitude", budget={"macs": MACS}, round_to=None)
    except CleanAIError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"{result.plan.achieved['macs'] / result.plan.achieved['macs_dense']:.3f}"
