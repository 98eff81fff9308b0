"""Groups tried before anything is removed: those without which the model would compute something else stay whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.graph.cutting import Cuts, cut, cuts_of
from cleanai_ray.graph.explaining import explain, module_of, running_error
from cleanai_ray.graph.group import ChannelGroup
from cleanai_ray.graph.heads import HeadAxis
from cleanai_ray.graph.measuring import measured
from cleanai_ray.graph.rounding import judged_again
from cleanai_ray.graph.silencing import OUTPUT, can_be_silenced, difference, probe_inputs, read, silenced
from cleanai_ray.graph.training_pass import TrainingPass
from cleanai_ray.graph.tying import UntiedError
from cleanai_ray.nn.copying import copied

_MOST_TRIALS = 300
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class _Fault:
    """Something wrong with a smaller model.

    Attributes:
        reason: What it is.
        place: Name of the layer, or of the module, in which it was found; `OUTPUT` or empty if it was in none.
    """

    reason: str
    place: str = ""

    def concerns(self, group: ChannelGroup) -> bool:
        """Return whether a group has channels at the place."""
        within = f"{self.place}."
        return any(member.layer == self.place or member.layer.startswith(within) for member in group.members)


class Trials:
    """Cuts channels of groups out of copies of a model, and compares these with the model.

    Whether groups pass does not depend on the weights: parameters that are all the same number, as scales often are at
    first, are random in the copies, and so is the input.

    Args:
        model: The dense model; it is left as it is.
        example_inputs: Its inputs.
        parameters: The dimension of each free parameter that has channels, by name.
        removed: The channels to cut, by group name; None: about half of the units of every group.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor,
        parameters: Mapping[str, int],
        removed: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._model, self._parameters, self._removed = copied(model), parameters, removed
        self._inputs = probe_inputs(
            torch.zeros_like(example_inputs[:1]) if _is_real(example_inputs) else example_inputs
        )
        if any(value.dtype in _HALF for value in self._model.parameters()):
            self._model = self._model.float()
            self._inputs = self._inputs.float() if _is_real(self._inputs) else self._inputs
        _randomise(self._model)
        self._number = 0
        self._training = TrainingPass.of(self._model, self._inputs)

    def sort_out(self, groups: Iterable[ChannelGroup]) -> tuple[list[ChannelGroup], dict[str, str]]:
        """Return the groups that can be cut, and why the others cannot, by name.

        A group that layers read in another order than its index mappings say is measured, and cut as measured, unless
        the channels to cut are given.
        """
        silent: list[ChannelGroup] = []
        others: list[ChannelGroup] = []
        for group in groups:
            layers = [self._model.get_submodule(m.layer) for m in group.members if m.layer not in self._parameters]
            (silent if all(map(can_be_silenced, layers)) else others).append(group)
        good, reasons = self._sort_out(silent)
        order = {group.name: place for place, group in enumerate([*silent, *others])}
        return sorted([*good, *others], key=lambda group: order[group.name]), reasons

    def fault_of_heads(self, axis: HeadAxis) -> str | None:
        """Return in which way a model without half of the heads of a module is wrong, or None.

        Attention that was opened is our own, and needs no trial.
        """
        number = axis.attention.num_heads
        if axis.attention.opened is not None or number == 1:
            return None
        channels = np.arange(axis.head_dim * max(1, number // 2))
        fault = self._fault_of_cuts({(part.layer, part.side): part.channels for part in axis.cuts(channels)})
        return None if fault is None else fault.reason

    def _sort_out(self, groups: Sequence[ChannelGroup]) -> tuple[list[ChannelGroup], dict[str, str]]:
        """Return the same of groups that can be silenced.

        First tried alone are those that have channels where the fault is. Where that is none of them, halves are tried,
        and those that pass together again.
        """
        fault = self._fault(groups)
        if fault is None:
            return list(groups), {}
        if len(groups) == 1:
            is_open = self._removed is None and self._number < _MOST_TRIALS
            found = measured(self._model, self._inputs, groups[0]) if is_open else None
            if found is not None and self._fault([found]) is None:
                return [found], {}
            return [], {groups[0].name: fault.reason}
        suspects = [group for group in groups if fault.concerns(group)]
        if suspects and len(suspects) < len(groups):
            good, reasons = self._sort_out(suspects)
            if good != suspects:
                rest, more = self._sort_out([*good, *(group for group in groups if group not in suspects)])
                return rest, reasons | more
        return self._sort_out_halves(groups)

    def _sort_out_halves(self, groups: Sequence[ChannelGroup]) -> tuple[list[ChannelGroup], dict[str, str]]:
        middle = len(groups) // 2
        first, reasons = self._sort_out(groups[:middle])
        second, more = self._sort_out(groups[middle:])
        reasons |= more
        if not first or not second or self._fault([*first, *second]) is None:
            return [*first, *second], reasons
        for group in second:
            fault = self._fault([*first, group])
            if fault is None:
                first.append(group)
            else:
                reasons[group.name] = fault.reason
        return first, reasons

    def _fault(self, groups: Sequence[ChannelGroup]) -> _Fault | None:
        """Return in which way a model without channels of groups is wrong, or None."""
        rng = np.random.default_rng(0)
        removed = self._removed or {
            group.name: group.expand(rng.permutation(group.num_units)[left_in_trials(group.num_units) :])
            for group in groups
            if group.num_units > 1
        }
        if not removed:
            return None
        if self._number == _MOST_TRIALS:
            return _Fault(f"it was not reached within {_MOST_TRIALS} trials")
        self._number += 1
        return self._fault_of_cuts(cuts_of(groups, removed))

    def _fault_of_cuts(self, cuts: Cuts) -> _Fault | None:
        smaller = copied(self._model)
        try:
            expected = silenced(self._model, self._inputs, cuts, self._parameters)
            cut(smaller, cuts, self._parameters)
            found = read(smaller, self._inputs, cuts, self._parameters)
            models = (self._model, smaller)
            place = judged_again((expected, found), models, self._inputs, cuts, self._parameters, difference)
        except UntiedError as error:
            return _Fault(error.reason, error.layers[0])
        except Exception as error:
            reason = f"the model does not run without some of its channels: {explain(error, smaller)}"
            return _Fault(reason, module_of(error, smaller))
        in_training = None if self._training is None or place is not None else self._training.fault(smaller)
        if in_training is not None:
            return _Fault(in_training)
        where = place if place in (None, OUTPUT) else f"what layer '{place}' reads"
        return None if place is None else _Fault(f"{where} would change by more than what is removed", place)


def left_in_trials(num_units: int) -> int:
    """Return how many of several units a trial leaves: a prime from half of them on, which divides as little as it can.

    Code that relies on the width of a layer often runs at half of it.
    """
    candidates = range(max(1, num_units // 2), num_units)
    primes = (n for n in candidates if n > 1 and num_units % n and all(n % each for each in range(2, int(n**0.5) + 1)))
    return next(primes, num_units - 1)


def failing_alone(
    model: nn.Module,
    inputs: Tensor,
    groups: Iterable[ChannelGroup],
    gone: Mapping[str, np.ndarray],
    parameters: Mapping[str, int],
) -> list[str]:
    """Return the names of the groups without some of whose channels a model does not run, whatever else it loses.

    Args:
        model: The model before the cut; it is left as it is.
        inputs: Its input.
        groups: The groups.
        gone: The channels of each group that go, by name.
        parameters: The dimension of each free parameter that has channels, by name.
    """
    names = []
    for group in groups:
        smaller = copied(model)
        try:
            cut(smaller, cuts_of([group], gone), parameters)
            failed = running_error(smaller, inputs) is not None
        except Exception:
            failed = True
        names += [group.name] if failed else []
    return names


def _is_real(value: Tensor) -> bool:
    return value.is_floating_point()


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not _is_real(parameter) or not parameter.numel() or not bool((parameter == parameter.flatten()[0]).all()):
            continue
        value = torch.rand(parameter.shape, generator=generator)
        if parameter.numel() > 1:
            parameter.copy_(0.5 + value if parameter.dim() == 1 else (value - 0.5) / parameter[0].numel() ** 0.5)
        elif not parameter.any():  # A scale that lets nothing of a branch pass at first.
            parameter.copy_(0.5 + value)
