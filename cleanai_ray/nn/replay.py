"""Runs of a part of a model: from one segment, given its input, to another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from cleanai_ray.nn.calls import Call, log_calls, tensors_in
from cleanai_ray.nn.faults import is_device_fault, is_out_of_memory
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.segments import Segment, find_segments, merge_segments

_TOLERANCE = 1e-5


class _Stopped(Exception):
    """Raised to end a forward pass before a segment, whose input it holds."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class Replay:
    """Runs a model from the input of one of its segments, and up to another, without computing what comes before.

    The model's own forward pass is run, so that whatever it does between modules is done. Modules that would end before
    the first segment begins return constants of the right shape instead of computing anything, and the segment's module
    reads the value given in place of its input.

    Each segment is run from the inputs that two samples give it when the model is made. If that does not give what the
    whole pass gave, the model carries something past the segment's beginning, unseen by autograd (a mask, a shape), and
    the segment becomes part of the one before; in the worst case one segment is left, the whole model.

    Args:
        model: The model. Whatever changes its weights afterwards may do so; its widths must stay.
        images: At least one input, [N, ...], on the model's device.
        segments: Segments of this model, or of a wider or narrower one with the same modules; None: `find_segments`.

    Attributes:
        model: The model.
        segments: The segments that can be run, in execution order.
    """

    def __init__(self, model: nn.Module, images: Tensor, segments: Sequence[Segment] | None = None) -> None:
        self.model = model
        images = images[:2] if len(images) > 1 else torch.cat([images, images])
        found = list(find_segments(model, images[:1]) if segments is None else segments)
        with evaluation_mode(model), torch.no_grad():
            self._starts = _record(model, images, [segment.name for segment in found])
            wrong = self._wrong_starts(images) | set(range(len(self._starts), len(found)))
        self.segments = merge_segments(found, {found[index].name for index in wrong})
        self._starts = [start for index, start in enumerate(self._starts) if index not in wrong]

    def run(self, value: Tensor, *, start: int = 0, stop: int | None = None) -> Any:
        """Run part of the model in its present mode, with or without gradients as the caller has it.

        Hooks on modules of the part are called as usual; what hooks before it see has no meaning. No hook or patch
        outlives the call.

        Args:
            value: Input of segment `start`, which is the model's own input for the first; a batch of any size.
            start: Place of the first segment to run.
            stop: Place of the segment to stop before; None: to the end.

        Returns:
            The input of segment `stop`, or the model's output.
        """
        with ExitStack() as undo:
            if stop is not None:
                undo.callback(_before(self._starts[stop].module, _stop).remove)
            begin = self._starts[start]
            given = value.clone() if begin.changes_input else value
            if start:
                given = undo.enter_context(begin.standing_in(given))
            try:
                return self.model(given)
            except _Stopped as stopped:
                return stopped.value

    def shape(self, place: int) -> tuple[int, ...]:
        """Return the shape of a segment's input for one sample."""
        return self._starts[place].value.shape

    def bytes_per_sample(self, place: int) -> int:
        """Return the bytes that one sample's input of a segment takes."""
        return self._starts[place].value.element.element_size() * math.prod(self.shape(place))

    def _wrong_starts(self, images: Tensor) -> set[int]:
        """Return the places of the segments at which a run must not begin."""
        inputs, output = self._inputs(images)
        number = len(self._starts)
        expected = [*inputs[1:], output]
        wrong: set[int] = set()
        for place in range(number):
            if self._agrees(inputs, expected, place, place):
                continue
            # Something that this segment reads was computed before its input: by the one before it, or farther back.
            wrong.add(place)
            for earlier in range(place - 1, 0, -1):
                if self._agrees(inputs, expected, earlier, place):
                    break
                wrong.add(earlier)
        return set(range(1, number)) if 0 in wrong else wrong

    def _inputs(self, images: Tensor) -> tuple[list[Tensor], Any]:
        """Return what each segment reads in a whole pass, and the model's output."""
        found: list[Tensor] = []
        with ExitStack() as undo:
            for start in self._starts:
                undo.callback(_before(start.module, lambda value: found.append(value.clone())).remove)
            output = self.model(images)
        return found, output

    def _agrees(self, inputs: Sequence[Tensor], expected: Sequence[Any], first: int, last: int) -> bool:
        """Return whether running segments `first` to `last` gives what the whole pass gave."""
        start = self._starts[first]
        stop = last + 1 if last + 1 < len(self._starts) else None
        for start.copies in (False, True):
            value = inputs[first].clone()
            version = value._version
            try:
                result = self.run(value, start=first, stop=stop)
            except Exception as error:  # Whatever a model raises on constants of one memory cell: it may run on copies.
                if is_out_of_memory(error) or is_device_fault(error):
                    raise
                continue
            start.changes_input |= value._version != version
            if _alike(result, expected[last]):
                return True
        return False


@dataclass(kw_only=True, eq=False)
class _Start:
    """The beginning of a segment.

    Attributes:
        module: The module that begins it.
        value: The shape of its input.
        images: The shape of the model's input.
        outputs: Modules that end before it, called by modules that do not; the shapes that each of their calls returns.
        copies: Whether the constants must own their memory, because the model changes them in place.
        changes_input: Whether the segment changes its input in place.
    """

    module: nn.Module
    value: _Constant
    images: _Constant
    outputs: list[tuple[nn.Module, list[Any]]]
    copies: bool = False
    changes_input: bool = False

    @contextmanager
    def standing_in(self, value: Tensor) -> Iterator[Tensor]:
        """Let all that comes before the segment return constants; yield an input of the model for such a pass."""
        size = self.value.batch_size(value)
        with ExitStack() as undo:
            for module, returned in self.outputs:
                undo.enter_context(_patched(module, self._returning(returned, size)))
            undo.callback(_before(self.module, lambda _: value).remove)
            yield self.images.of(size, self.copies)

    def _returning(self, constants: Sequence[Any], size: int) -> Callable[..., Any]:
        waiting = iter(constants)

        def forward(*args: Any, **kwargs: Any) -> Any:
            leaves, structure = next(waiting)
            filled = [leaf.of(size, self.copies) if isinstance(leaf, _Constant) else leaf for leaf in leaves]
            return tree_unflatten(filled, structure)

        return forward


@dataclass(frozen=True, kw_only=True, eq=False)
class _Constant:
    """A tensor of one value, whose shape depends on the batch size.

    Attributes:
        element: The value, [].
        shape: Shape for one sample.
        growth: Change of the shape with each further sample.
    """

    element: Tensor
    shape: tuple[int, ...]
    growth: tuple[int, ...]

    @staticmethod
    def like(one: Tensor, two: Tensor) -> _Constant:
        """Return the constant that stands for a tensor of a batch of one, and of a batch of two."""
        element = one.detach().flatten()[0].clone() if one.numel() else one.detach().new_zeros(())
        growth = tuple(b - a for a, b in zip(one.shape, two.shape, strict=True))
        return _Constant(element=element, shape=tuple(one.shape), growth=growth)

    def of(self, size: int, copies: bool) -> Tensor:
        """Return the tensor for a batch of some size."""
        shape = [length + (size - 1) * growth for length, growth in zip(self.shape, self.growth, strict=True)]
        value = self.element.expand(shape)
        return value.contiguous() if copies else value

    def batch_size(self, value: Tensor) -> int:
        """Return the number of samples of a tensor."""
        place = next(index for index, growth in enumerate(self.growth) if growth)
        return 1 + (value.shape[place] - self.shape[place]) // self.growth[place]


def _record(model: nn.Module, images: Tensor, names: Sequence[str]) -> list[_Start]:
    """Return the beginnings of segments; of the first alone if two images take another way than one does."""
    one, two = log_calls(model, images[:1]), log_calls(model, images)
    whole = _Constant.like(images[:1], images)
    starts = [_Start(module=model.get_submodule(names[0]), value=whole, images=whole, outputs=[])]
    if [call.name for call in one] != [call.name for call in two]:
        return starts
    pairs = dict(zip(one, two, strict=True))
    first = {call.name: call for call in one}
    try:
        return [*starts, *(_start(model, pairs, first[name], whole) for name in names[1:])]
    except ValueError:  # Of one sort for one image, and of another for two.
        return starts


def _start(model: nn.Module, pairs: dict[Call, Call], begin: Call, images: _Constant) -> _Start:
    value, other = begin.value, pairs[begin].value
    assert value is not None, "a segment begins at a module that reads one tensor"
    assert other is not None
    return _Start(
        module=model.get_submodule(begin.name),
        value=_Constant.like(value, other),
        images=images,
        outputs=_outputs(model, pairs, begin),
    )


def _outputs(model: nn.Module, pairs: dict[Call, Call], begin: Call) -> list[tuple[nn.Module, list[Any]]]:
    """Return the modules all of whose calls end before a call, if what calls them does not, and what they return."""
    found: dict[str, list[Any]] = {}
    later = {call.name for call in pairs if call.end > begin.begin}
    for call, other in pairs.items():
        if call.caller is not None and call.caller.end > begin.end and call.name not in later:
            leaves, structure = tree_flatten(call.output)
            others = tree_flatten(other.output)[0]
            constants = [
                _Constant.like(*pair) if isinstance(pair[0], Tensor) else pair[0]
                for pair in zip(leaves, others, strict=True)
            ]
            found.setdefault(call.name, []).append((constants, structure))
    return [(model.get_submodule(name), returned) for name, returned in found.items()]


def _stop(value: Tensor) -> Tensor:
    raise _Stopped(value)


def _before(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call a function with a module's only input before all other hooks; what it returns is read instead."""
    return module.register_forward_pre_hook(lambda _, args: change(args[0]), prepend=True)


@contextmanager
def _patched(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a module another forward pass."""
    own = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own  # type: ignore[method-assign]


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _alike(one: Any, other: Any) -> bool:
    """Return whether two outputs are equal up to rounding."""
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
    return bool(pairs) and all(
        a.shape == b.shape
        and a.is_complex() == b.is_complex()
        and torch.allclose(_wide(a), _wide(b), rtol=_TOLERANCE, atol=_TOLERANCE * float(b.abs().max()), equal_nan=True)
        for a, b in pairs
    )
