"""One architecture tried: pruned at a ratio and to a budget, checked, saved and loaded; and by torch-pruning itself."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from zoo_architectures import KEEPS, PRUNED, Architecture, build

import cleanai_ray as cleanai
from cleanai_ray.errors import CleanAIError
from cleanai_ray.graph import graph as graph_module
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
            `macs`, `error`, `loads`, `half`, `seconds`.
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
    note("error", max(worst, default=0.0))
    note("groups", len(result.plan.groups))
    note("macs", result.plan.achieved["macs"] / result.plan.achieved["macs_dense"])
    note("warnings", list(result.plan.warnings))
    note("seconds", time.process_time() - start)
    short = [name for name, share, unit in _shares(result) if not RATIO - unit < share < RATIO + unit]
    kept = [told for told in result.plan.warnings if "width" in told or "keep" in told]
    exact = max(worst, default=0.0) < EXACT and not short
    note("outcome", (KEEPS if kept else PRUNED) if exact else "wrong")
    note("told", f"groups {short} lost another share" if short else "; ".join(kept))
    note("loads", _loads(result, architecture, inputs))
    note("half", _half(model, inputs))
    note("seconds", time.process_time() - start)


def _recorded_differences() -> list[float]:
    """Return a list to which every semantic check adds the largest difference, as a share of the largest value."""
    found: list[float] = []
    judge = graph_module.difference

    def difference(expected: Any, reading: Any) -> str | None:
        for (_, wanted), (_, value) in zip(expected, reading, strict=False):
            if wanted.shape == value.shape and wanted.is_floating_point() and wanted.numel():
                apart = (torch.nan_to_num(wanted) - torch.nan_to_num(value)).abs().max()
                found.append(float(apart / torch.nan_to_num(wanted).abs().max().clamp_min(1e-12)))
        return judge(expected, reading)

    graph_module.difference = difference  # type: ignore[assignment]
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


def try_torch_pruning(architecture: Architecture, note: Note) -> None:
    """Prune by torch-pruning as its own documentation does, and note `reference`: whether the smaller model runs.

    What the smaller model computes is not compared with anything.
    """
    import torch_pruning

    warnings.simplefilter("ignore")
    try:
        model, inputs = build(architecture)
    except ImportError:
        return
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            pruning_ratio=RATIO,
            ignored_layers=last,
            output_transform=lambda output: sum(value.sum() for value in tensors_in(output)),
        )
        before, _ = torch_pruning.utils.count_ops_and_params(model, inputs)
        pruner.step()
        after, _ = torch_pruning.utils.count_ops_and_params(model, inputs)
        with torch.no_grad():
            model(inputs)
        note("reference", f"{after / before:.3f}" if after < before else "nothing removed")
    except Exception as error:
        note("reference", f"{type(error).__name__}: {' '.join(str(error).split())[:60]}")
