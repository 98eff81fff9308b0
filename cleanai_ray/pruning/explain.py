"""A plan as text: what each group loses and why, and how much that saves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cleanai_ray.display.tables import percent, share, text_table
from cleanai_ray.pruning.granularity import Granularity

if TYPE_CHECKING:
    from cleanai_ray.pruning.plan import GroupPlan, PruningPlan

_WIDTH = 118
_LEAST_LAYERS_WIDTH = 16
_GAP = "  "
_SLACK = 1e-9
HEADINGS = ("group", "layers cut with it", "channels", "removed", "why")
NUMBERS = ("channels", "removed")
"""The columns of the table of groups, and those of them that hold numbers."""

_RANKED = {
    "local": "lowest scores in the group",
    "global": "lowest scores of all groups",
    "isomorphic": "lowest scores of like groups",
}


def explain_plan(plan: PruningPlan) -> str:
    """Return a plan as text of about 118 columns: the request, a row per group, totals and warnings.

    Everything comes from the plan, so a plan from a file can be explained too. A group is named after its first layer.
    Of the other layers that it cuts, those that narrow with it come before the arrow, and those that read them after.
    """
    parts = [_heading(plan), *([_blocks(plan)] if plan.blocks else []), _groups(plan), _totals(plan)]
    if plan.warnings:
        parts.append("\n".join(["Warnings:", *(_wrapped(f"- {text}", indent=2) for text in plan.warnings)]))
    return "\n\n".join(parts)


def _heading(plan: PruningPlan) -> str:
    narrower = len(plan.removed)
    inputs = [" x ".join(str(size) for size in shape) for shape in plan.model.get("example_inputs", [])]
    read_from = f" for inputs of {' and '.join(inputs)}" if inputs else ""
    lines = [
        f"Pruning plan of {plan.model.get('class', 'a model')}{read_from}: {narrower} of {len(plan.groups)} "
        "groups of layers become narrower",
        f"Asked:  {asked_for(plan.request)}",
        f"Bounds: {_bounds(plan.request.get('bounds') or {})}",
    ]
    if "blocks" in plan.achieved:
        lines.append(f"Blocks: {plan.achieved['blocks']['why']}")
    if plan.blocks:
        number = len(plan.blocks)
        lines[0] += f", and {number} residual block{' becomes its' if number == 1 else 's become their'} shortcut"
    return "\n".join(_wrapped(line, indent=8) for line in lines)


def _blocks(plan: PruningPlan) -> str:
    """Return the table of removed blocks: the layers that go, and their share of the dense model's MACs."""
    whole = plan.achieved.get("macs_dense")
    headings = ("block", "layers removed", "MACs", "of dense")
    rows = [
        [removed.name, str(len(removed.block.layers)), f"{removed.macs:,}", share(removed.macs, whole or 0)]
        for removed in plan.blocks
    ]
    note = "A removed block is its shortcut, plus the mean of what its branch gave."
    return f"{text_table(headings, rows, right=headings[1:])}\n{note}"


def asked_for(request: Mapping[str, Any]) -> str:
    """Return a plan's request in words: method, mode, ratio or budget, steps, seed and options."""
    method = "/".join(str(request[key]) for key in ("method", "coverage_metric") if request.get(key))
    limits = {key: value for key, value in (request.get("budget") or {}).items() if value is not None}
    words = [
        method,
        request.get("mode", ""),
        f"ratio {request['ratio']:g}" if request.get("ratio") is not None else "",
        *(f"budget {key}={value:g}" for key, value in limits.items()),
        f"{request['steps']} step{'' if request['steps'] == 1 else 's'}" if "steps" in request else "",
        f"seed {request['seed']}" if "seed" in request else "",
        *(f"{key} {value}" for key, value in (request.get("options") or {}).items()),
    ]
    nothing = "no channels" if request.get("blocks_only") else "not recorded"
    return ", ".join(str(word) for word in words if word) or nothing


def _bounds(bounds: Mapping[str, Any]) -> str:
    ratios = ", ".join(f"{prefix}: {ratio:g}" for prefix, ratio in (bounds.get("layer_ratios") or {}).items())
    words = [
        f"max_ratio {bounds['max_ratio']:g}" if "max_ratio" in bounds else "",
        f"min_channels {bounds['min_channels']}" if "min_channels" in bounds else "",
        _rounding(bounds),
        f"layer_ratios {{{ratios}}}" if ratios else "",
        f"equal_widths {', '.join(bounds['equal_widths'])}" if bounds.get("equal_widths") else "",
        f"ignored_layers {', '.join(bounds['ignored_layers'])}" if bounds.get("ignored_layers") else "",
    ]
    return ", ".join(word for word in words if word) or "not recorded"


def _rounding(bounds: Mapping[str, Any]) -> str:
    if not bounds.get("round_to"):
        return ""
    scaled = " (less where a group is narrow)" if bounds.get("least_steps") else ""
    return f"round_to {bounds['round_to']}{scaled}"


def _groups(plan: PruningPlan) -> str:
    """Return the table of groups, in which the column of layers takes the width that the others leave."""
    rows = group_rows(plan)
    others = [max(len(text) for text in column) for column in zip(HEADINGS, *rows, strict=True)]
    left = _WIDTH - sum(others) + others[1] - len(_GAP) * (len(HEADINGS) - 1)
    for group, row in zip(plan.groups, rows, strict=True):
        row[1] = _layers(group, max(left, _LEAST_LAYERS_WIDTH))
    note = "A group is named after its first layer; layers after -> only read its channels."
    return f"{text_table(HEADINGS, rows, right=NUMBERS)}\n{note}"


def group_rows(plan: PruningPlan) -> list[list[str]]:
    """Return a row of `HEADINGS` for each group of a plan."""
    digits = max((len(str(group.num_channels)) for group in plan.groups), default=1)
    rows = []
    for group in plan.groups:
        gone, width = len(group.removed), group.num_channels
        change = f"{width:>{digits}} -> {width - gone:>{digits}}"
        rows.append([group.name, _layers(group, _WIDTH), change, percent(gone / width), _why(group, plan.request)])
    return rows


def _layers(group: GroupPlan, width: int) -> str:
    """Return the names of a group's other layers as `bn1 -> conv2`, shortened to `bn1, ... (+5)` if too wide."""
    if not group.layers:
        return "not recorded"
    narrower = [name for name in group.outputs if name != group.name]
    names = [*narrower, *(name for name in group.inputs if name not in group.outputs)]
    text = _joined(names, len(narrower))
    number = len(names)
    while len(text) > width and number > 1:
        number -= 1
        text = f"{_joined(names[:number], len(narrower))}, ... (+{len(names) - number})"
    if len(text) > width:  # The end of a name says more than its beginning.
        room = len(names[0]) - (len(text) - width) - len("...")
        text = text.replace(names[0], f"...{names[0][-max(room, 1) :]}", 1)
    return text or "none"


def _joined(names: Sequence[str], num_narrower: int) -> str:
    narrower, reading = ", ".join(names[:num_narrower]), ", ".join(names[num_narrower:])
    return f"{narrower} -> {reading}".lstrip() if reading else narrower


def _why(group: GroupPlan, request: Mapping[str, Any]) -> str:
    if request.get("blocks_only"):
        return "kept: only blocks were asked for"
    bounds = request.get("bounds") or {}
    kept = group.num_channels - len(group.removed)
    least, bound = _least_width(group, bounds)
    prefix, ratio = _layer_ratio(group, bounds.get("layer_ratios") or {})
    ranked = (
        "cheapest for what they save"
        if request.get("by_price")
        else _RANKED.get(str(request.get("mode")), "not recorded")
    )
    chosen = f"layer_ratios {prefix}: {ratio:g}" if prefix else ranked
    step = _step(group, bounds)
    if group.removed:
        if kept <= least:
            return f"as far as {bound} allows" if prefix is None else f"{chosen}, as far as {bound} allows"
        return f"{chosen}, in steps of {step}" if step > group.num_blocks else chosen
    if step > group.num_channels:
        return f"kept: narrower than round_to {bounds['round_to']}"
    if least >= group.num_channels:
        return f"kept: {bound} allows no less"
    return f"kept: {chosen} takes none" if prefix else "kept: more important than others"


def _step(group: GroupPlan, bounds: Mapping[str, Any]) -> int:
    """Return the channels by which a group's width can change."""
    granularity = Granularity(multiple=bounds.get("round_to") or 1, least_steps=bounds.get("least_steps", 0))
    return granularity.step(group.num_channels, group.num_blocks)


def _least_width(group: GroupPlan, bounds: Mapping[str, Any]) -> tuple[int, str]:
    """Return the fewest channels that the bounds leave a group, and the bound that decides it (see Selector)."""
    min_channels, max_ratio = bounds.get("min_channels", 1), bounds.get("max_ratio", 1.0)
    by_ratio = math.ceil(group.num_channels * (1 - max_ratio) - _SLACK)
    bound = f"min_channels {min_channels}" if min_channels > by_ratio else f"max_ratio {max_ratio:g}"
    step = _step(group, bounds)
    return math.ceil(max(min_channels, by_ratio, 1) / step) * step, bound


def _layer_ratio(group: GroupPlan, ratios: Mapping[str, float]) -> tuple[str | None, float]:
    """Return the prefix and the ratio that decided on a group: the longest prefix, then the least ratio."""
    found = []
    for layer in group.outputs or (group.name,):
        prefixes = [prefix for prefix in ratios if f"{layer}.".startswith(f"{prefix}.")]
        if prefixes:
            longest = max(prefixes, key=len)
            found.append((ratios[longest], longest))
    ratio, prefix = min(found, default=(0.0, None))
    return prefix, ratio


def _totals(plan: PruningPlan) -> str:
    return text_table(("", "dense", "pruned", "kept", ""), total_rows(plan), right=("dense", "pruned", "kept"))


def total_rows(plan: PruningPlan) -> list[list[str]]:
    """Return a row for each cost of the model: its name, dense, pruned, the share that is kept, and a note."""
    achieved = plan.achieved
    channels = sum(group.num_channels for group in plan.groups)
    left = channels - sum(len(group.removed) for group in plan.groups)
    rows = [["prunable channels", f"{channels:,}", f"{left:,}", share(left, channels), ""]]
    for key, name in (("params", "parameters"), ("macs", "MACs of one input")):
        if key in achieved:
            dense, pruned = achieved[f"{key}_dense"], achieved[key]
            rows.append([name, f"{dense:,}", f"{pruned:,}", share(pruned, dense), ""])
    if "size_bytes" in achieved:
        dense, pruned = achieved["size_bytes_dense"], achieved["size_bytes"]
        rows.append(["file", f"{dense / 1e6:,.3f} MB", f"{pruned / 1e6:,.3f} MB", share(pruned, dense), ""])
    if "latency" in achieved:
        rows.append(_latency_row(achieved["latency"]))
    return rows


def _latency_row(latency: Mapping[str, Any]) -> list[str]:
    if "latency_ms_p50" not in latency:  # The user's own function timed it, and returns the ratio alone.
        return ["measured latency", "", "", percent(latency["ratio"]), ""]
    dense, pruned = (f"{latency[key]:.2f} ms" for key in ("latency_ms_p50_dense", "latency_ms_p50"))
    threads = f"{latency['num_threads']} thread{'' if latency['num_threads'] == 1 else 's'}"
    note = f"batch {latency['batch_size']}, {threads}, {latency['device']}"
    return ["measured latency", dense, pruned, percent(latency["ratio"]), note]


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
