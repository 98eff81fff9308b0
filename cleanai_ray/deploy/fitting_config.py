"""The configuration of transformers by which a model has the sizes that pruning left.

Which key gives which size is not written down for each family, but found out: a key is doubled (or multiplied
otherwise, where a model does not allow that), the model is built without memory for its weights, and the dimensions
that grow alike are those that the key gives.

1. Biases that the model has and its configuration does not ask for are asked for (`attention_bias`, `mlp_bias`).
2. Sizes that follow from others are spelled out: `n_inner` of GPT-2, and `head_dim`, without which fewer heads would
   be wider ones.
3. Each key gets the size of the dimensions that it alone gives, which must be the same in all layers.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cleanai_ray.errors import ArtifactError

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every tensor of a model's state by name."""

Build = Callable[[Mapping[str, Any]], Shapes]
"""Returns the shapes of the model of a configuration's values; raises an error for values that are not allowed."""

Axis = tuple[str, int]
"""A dimension of a tensor, by the tensor's name."""

Key = tuple[str, int | None]
"""A key of a configuration, and a place in its list."""

_HEAD_SIZE = "head_dim"
_FACTORS = (2, 3, 0.5)
"""What the size of a key is multiplied by, the first that the model allows."""

_PROBE = 6
"""A size that is given to keys without one; even, as sizes of heads that are rotated in pairs must be."""


class ConfigFit:
    """The search for one model's configuration.

    Args:
        name: Class of the configuration, for messages.
        values: The values of the dense model's configuration.
        build: Returns the shapes of a model.
        wanted: The shapes that the pruned model has.
    """

    def __init__(self, name: str, values: Mapping[str, Any], build: Build, wanted: Shapes) -> None:
        self._name, self._values, self._wanted = name, copy.deepcopy(dict(values)), wanted
        self._build = build
        self._shapes = build(self._values)

    def run(self, heads: tuple[str, int] | None = None) -> dict[str, Any]:
        """Return the values.

        Args:
            heads: The key of the number of heads, and their number, for a model whose shapes do not tell it.

        Raises:
            ArtifactError: When no values give the sizes; the message names a layer and its size.
        """
        self._ask_for_biases()
        if self._differing():
            self._spell_out()
            self._solve(heads)
        self._require_fit()
        return self._values

    def _differing(self) -> list[Axis]:
        return [
            (name, axis)
            for name, shape in self._shapes.items()
            if name in self._wanted and len(shape) == len(self._wanted[name])
            for axis, size in enumerate(shape)
            if size != self._wanted[name][axis]
        ]

    def _try(self, key: Key, value: Any) -> Shapes | None:
        """Return the shapes with another value of a key; None where it is not allowed."""
        try:
            return self._build(_with(self._values, key, value))
        except Exception:  # Whatever a configuration or a model says of values that do not fit together.
            return None

    def _ask_for_biases(self) -> None:
        for key in [name for name, value in self._values.items() if value is False]:
            missing = self._wanted.keys() - self._shapes.keys()
            if not missing:
                return
            found = self._try((key, None), True)
            gained = () if found is None else found.keys() - self._shapes.keys()
            if found is not None and missing & set(gained) and all(name.endswith(".bias") for name in gained):
                self._values[key], self._shapes = True, found

    def _spell_out(self) -> None:
        """Give keys without a value the one that follows from others, where it gives sizes."""
        empty = [name for name, value in self._values.items() if value is None]
        for key in empty if _HEAD_SIZE in self._values else [*empty, _HEAD_SIZE]:
            sizes = set()
            for name, shape in (self._try((key, None), _PROBE) or {}).items():
                before = self._shapes.get(name, ())
                sizes |= {old * _PROBE / new for old, new in zip(before, shape, strict=False) if old != new}
            if len(sizes) == 1 and (size := sizes.pop()) == int(size):
                found = self._try((key, None), int(size))
                self._values |= {key: int(size)} if found == self._shapes else {}

    def _given(self) -> dict[Key, list[Axis]]:
        """Return the dimensions that each key gives alone, and an empty list for keys that give none at all."""
        sizes = {self._shapes[name][axis] for name, axis in self._differing()}
        given = {
            key: self._given_by(key, value)
            for key, value in _sizes_in(self._values)
            if key[0] != _HEAD_SIZE and any(size % value == 0 for size in sizes)
        }
        owners = Counter(axis for axes in given.values() for axis in axes)
        return {key: [axis for axis in axes if owners[axis] == 1] for key, axes in given.items()}

    def _given_by(self, key: Key, value: int) -> list[Axis]:
        for factor in _FACTORS:
            scaled = value * factor
            found = self._try(key, int(scaled)) if scaled == int(scaled) else None
            if found is not None:
                return _scaled(self._shapes, found, factor)
        return []

    def _solve(self, heads: tuple[str, int] | None) -> None:
        given = self._given()
        values = copy.deepcopy(self._values)
        for key, axes in given.items():
            sizes: dict[float, Axis] = {}
            for name, axis in axes:
                if name in self._wanted:
                    each = self._shapes[name][axis] / _value(self._values, key)
                    sizes.setdefault(self._wanted[name][axis] / each, (name, axis))
            if len(sizes) > 1:
                raise ArtifactError(self._conflict(key, list(sizes.values())[:2]))
            if sizes and (size := next(iter(sizes))) == int(size):
                values = _with(values, key, int(size))
        if heads is not None and not given.get((heads[0], None)):
            values[heads[0]] = heads[1]
        try:
            self._shapes = self._build(values)
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            asked = _changed(self._values, values)
            raise ArtifactError(
                f"{self._name} does not allow the sizes that pruning left ({asked}): {reason}; prune to other widths, "
                "or export it as torch_export"
            ) from error
        self._values = values

    def _conflict(self, key: Key, axes: Sequence[Axis]) -> str:
        (one, first), (other, second) = (((name, axis), self._wanted[name][axis]) for name, axis in axes)
        place = key[0] if key[1] is None else f"{key[0]}[{key[1]}]"
        return (
            f"{self._name} has one {place} for all layers, by which layers '{_layer(one[0])}' and '{_layer(other[0])}' "
            f"cannot have the sizes {first} and {second}; {_ADVICE}"
        )

    def _require_fit(self) -> None:
        for name, shape in self._wanted.items():
            found = self._shapes.get(name)
            if found is None and name.endswith(".bias"):
                raise ArtifactError(
                    f"layer '{_layer(name)}' has a bias, of a repair or of a removed layer, and {self._name} has no "
                    "key that gives it one; export it as torch_export, or do without (repair: none)"
                )
            if found != shape:
                model = "no such layer" if found is None else str(list(found))
                raise ArtifactError(
                    f"layer '{_layer(name)}' has {name.rpartition('.')[2]} {list(shape)}, and {self._name} can only "
                    f"say {model}; {_ADVICE}"
                )
        lost = next((name for name in self._shapes if name not in self._wanted and not name.endswith(".bias")), None)
        if lost is not None:
            raise ArtifactError(f"the model has no layer '{_layer(lost)}', which {self._name} asks for; {_ADVICE}")


_ADVICE = (
    "give such layers equal widths (pruning.equal_widths, or mode local and one ratio), let them keep theirs "
    "(ignored_layers), or export it as torch_export"
)


def without_layers(values: Mapping[str, Any], key: str, removed: Sequence[int]) -> dict[str, Any]:
    """Return a configuration's values without some layers: their number, and their places in lists of all layers.

    Args:
        values: The values of the dense model.
        key: The key of the number of layers.
        removed: The numbers of the layers that go.
    """
    number = values.get(key)
    if not removed or not isinstance(number, int):
        return dict(values)
    kept = [place for place in range(number) if place not in removed]
    found = {
        name: [value[place] for place in kept] if isinstance(value, list) and len(value) == number else value
        for name, value in values.items()
    }
    return {**found, key: len(kept)}


def _layer(name: str) -> str:
    """Return the layer of a weight or bias; a parameter of another name, as a class token, is named itself."""
    layer, _, leaf = name.rpartition(".")
    return layer if layer and leaf in ("weight", "bias") else name


def _with(values: Mapping[str, Any], key: Key, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(dict(values))
    if key[1] is None:
        changed[key[0]] = value
    else:
        changed[key[0]][key[1]] = value
    return changed


def _value(values: Mapping[str, Any], key: Key) -> int:
    found = values[key[0]]
    return int(found if key[1] is None else found[key[1]])


def _sizes_in(values: Mapping[str, Any]) -> Iterator[tuple[Key, int]]:
    """Yield the whole numbers of a configuration, those in lists as well."""
    for name, value in values.items():
        if type(value) is int and value > 0:
            yield (name, None), value
        elif isinstance(value, list):
            yield from (((name, place), each) for place, each in enumerate(value) if type(each) is int and each > 0)


def _scaled(before: Shapes, after: Shapes, factor: float) -> list[Axis]:
    return [
        (name, axis)
        for name, shape in before.items()
        for axis, (old, new) in enumerate(zip(shape, after.get(name, ()), strict=False))
        if new == factor * old
    ]


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in after.items() if before.get(key) != value)
