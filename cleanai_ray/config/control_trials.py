"""The trials that a study's controls are, and what they take."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cleanai_ray.config.controls import Control, ControlsSection
from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.config.messages import name_among
from cleanai_ray.config.sections import Mode, ModelSection
from cleanai_ray.config.sweep import Budget, SweepSection
from cleanai_ray.config.trial import Trial

_WEIGHTS_ALONE = "magnitude"
"""The method that controls name which ask no method of the study: it reads nothing but weights."""

Cells = Sequence[Mapping[str, Any]]
"""Values of a trial's fields, one choice of them each."""


def control_trials(sweep: SweepSection, labels: Sequence[str], draws: Cells) -> list[Trial]:
    """Return the controls of a sweep, kind by kind: one for each of its amounts and seeds.

    The pruner of torch-pruning also has one for each draw of the calibration images, on which its batch norm is
    recalibrated; the others read the first draw alone.

    Args:
        sweep: The sweep.
        labels: Its methods, each with its coverage metric where it uses one.
        draws: The fields that name a draw of the calibration images, for each of them.
    """
    section = sweep.controls
    if section is None:
        return []
    trials = []
    for kind in section.kinds:
        fields: dict[str, Any] = {"control": Control(kind=kind)}
        amounts, read = _amounts(sweep), draws
        if kind == "dense_finetuned":
            amounts = [{"budget": Budget(macs=1.0)}]
        if kind in ("scratch", "narrow"):
            fields = {"control": Control(kind=kind, compute=section.compute)}
            amounts = [amount for amount in amounts if section.amounts is None or _limit(amount) in section.amounts]
        if kind == "scratch":
            method, _, metric = (section.widths_of or labels[0]).partition("/")
            fields |= {"coverage_metric": metric or None, "mode": _mode(sweep, section), "steps": sweep.steps[0]}
        else:
            method = _WEIGHTS_ALONE
        if kind != "torch_pruning":
            read = draws[:1]
        fields |= {"method": method, "options": sweep.method_options.get(method, {})}
        every = itertools.product(amounts, sweep.seeds, read)
        trials += [Trial(**fields, **amount, **draw, seed=seed) for amount, seed, draw in every]
    return trials


def check_controls(sweep: SweepSection, labels: Sequence[str], model: ModelSection, finetune: FineTuneSection) -> None:
    """Check what the controls of a study take from its other sections.

    Raises:
        ValueError: One sentence on the first thing that does not fit.
    """
    section = sweep.controls
    if section is None:
        return
    trained = [kind for kind in section.kinds if kind in ("scratch", "narrow")]
    if trained and model.train is None:
        raise ValueError(
            f"sweep.controls.kinds holds {trained[0]}, and model.train is null; needed: model.train, the recipe of the "
            "dense model, by which the control is trained as well"
        )
    if trained and model.weights is not None:
        raise ValueError(
            f"sweep.controls.kinds holds {trained[0]}, and model.weights is '{model.weights}'; needed: null, since the "
            "control is trained for as long as the dense model was, which here nobody knows"
        )
    if "dense_finetuned" in section.kinds and not finetune.epochs:
        raise ValueError(
            "sweep.controls.kinds holds dense_finetuned, and finetune.epochs is 0; needed: at least 1, the fine-tuning "
            "that trials get"
        )
    if finetune.between_steps and any(steps > 1 for steps in sweep.steps):
        raise ValueError(
            f"sweep.controls is given, and finetune.between_steps is {finetune.between_steps}, which controls do not "
            "get; allowed beside controls: 0"
        )
    timed = next((budget for budget in sweep.budgets if budget.resource == "latency"), None)
    if "torch_pruning" in section.kinds and timed is not None:
        raise ValueError(
            f"sweep.controls.kinds holds torch_pruning, and sweep.budgets {timed}, which torch-pruning cannot meet; "
            "allowed: budgets of macs, params or size_mb"
        )
    limits = [_limit(amount) for amount in _amounts(sweep)]
    unknown = [limit for limit in section.amounts or () if limit not in limits]
    if unknown:
        swept = ", ".join(f"{limit:g}" for limit in limits)
        raise ValueError(f"sweep.controls.amounts holds {unknown[0]:g}; allowed: those of the sweep, {swept}")
    if section.widths_of is not None and section.widths_of not in labels:
        choices = name_among(section.widths_of, labels)
        raise ValueError(f"sweep.controls.widths_of: '{section.widths_of}' is not a method of the sweep; {choices}")
    if section.mode is not None and section.mode not in sweep.modes:
        swept = ", ".join(sweep.modes)
        raise ValueError(f"sweep.controls.mode is {section.mode}; allowed: those of sweep.modes, {swept}")


def _amounts(sweep: SweepSection) -> list[dict[str, Any]]:
    return [*({"ratio": ratio} for ratio in sweep.ratios), *({"budget": budget} for budget in sweep.budgets)]


def _limit(amount: Mapping[str, Any]) -> float:
    return float(amount["budget"].limit if "budget" in amount else amount["ratio"])


def _mode(sweep: SweepSection, section: ControlsSection) -> Mode:
    return section.mode or ("global" if "global" in sweep.modes else sweep.modes[0])
