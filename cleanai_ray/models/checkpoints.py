"""The weights inside a file that a trainer wrote: a state dictionary, nested, with words before its names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_DEPTH = 3
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that torch.compile, DataParallel, DDP, FSDP and checkpointing put between those of a model."""
_USUAL = ("", "state_dict", "model", "model_state_dict", "state_dict_model", "net", "network", "weights", "params")
_BOOKKEEPING = ("n_averaged",)
"""Tensors of wrappers that are no weights: AveragedModel counts its updates."""
_NUM_SHOWN = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Taken:
    """The tensors for a model, under the model's own names.

    Attributes:
        state: The tensors by name.
        place: Keys that lead to the state dictionary in the file, joined by full stops; empty for the file itself.
        dropped: Words that stood before every name.
        added: Words that the model has before every name, and the file has not.
        unwrapped: True if names of wrappers were taken out of the middle of names.
        left_out: Tensors beside the model's, and keys beside the state dictionary.
        others: Further places that fit the model as well, as `weights_key` names them.
    """

    state: dict[str, Tensor]
    place: str = ""
    dropped: str = ""
    added: str = ""
    unwrapped: bool = False
    left_out: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What was taken, renamed and left out; empty if the file holds the tensors as the model names them."""
        changes = [f"taken from '{self.place}'"] if self.place else []
        changes += [f"'{self.dropped}' dropped before names"] if self.dropped else []
        changes += [f"'{self.added}' put before names"] if self.added else []
        changes += ["names of wrappers taken out"] if self.unwrapped else []
        changes += [f"left out: {shortened(self.left_out)}"] if self.left_out else []
        changes += [f"'{self.others[0]}' fits as well (model.weights_key takes it)"] if self.others else []
        return f"{len(self.state)} tensors, {'; '.join(changes)}" if changes else ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """One way to read a state dictionary for a model, and the number of the model's names that it has."""

    place: tuple[str, ...]
    prefix: str = ""
    added: str = ""
    count: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """The names that `weights_key` can call it by, the clearest last."""
        place, prefix = ".".join(self.place), self.prefix.rstrip(".")
        joined = f"{place}.{prefix}".strip(".")
        return tuple(dict.fromkeys(key for key in (*self.place[-1:], place, prefix, joined) if key))

    @property
    def rank(self) -> tuple[Any, ...]:
        """The order of preference: the most names, no moving average, a usual key, few words before names."""
        averaged = "ema" in re.split(r"[._]", ".".join([*self.place, self.prefix]).lower())
        key = self.place[-1] if self.place else ""
        usual = _USUAL.index(key) if key in _USUAL else len(_USUAL)
        return -self.count, averaged, usual, len(self.prefix), self.prefix


def take_weights(content: Any, names: Collection[str], key: str | None = None) -> Taken | str:
    """Return the tensors of a checkpoint for a model, or a sentence's end that says why there are none.

    Of every state dictionary in it, and of every word before names (`module.`, `model.`, an attribute of a Lightning
    module), that one is taken which has most of the model's names; a moving average (`ema`) only if nothing else has as
    many, or `key` asks for it.

    Args:
        content: The content of the file.
        names: The names of the model's state dictionary.
        key: `model.weights_key`: a key, a path of keys joined by full stops, or words before names.
    """
    wanted = {name for name in names if not name.endswith("num_batches_tracked")}
    states = {place: _unwrapped(state, wanted) for place, state in states_in(content)}
    if not states:
        return _nothing(content)
    readings = [reading for place, state in states.items() for reading in _readings(place, state, wanted)]
    if key is not None:
        found = [reading for reading in readings if key in reading.keys]
        if not found:
            known = dict.fromkeys(name for reading in sorted(readings, key=_rank) for name in reading.keys)
            return f"has no weights at '{key}', model.weights_key; allowed: {', '.join(list(known)[:8]) or 'null'}"
        readings = found
    best = min(readings, key=_rank)
    if 2 * best.count < len(wanted) and key is None:  # another network: its names are told as they are
        best = _Reading(place=max(states, key=lambda place: len(states[place])))
    fit = [reading for reading in readings if reading.count == len(wanted) and reading is not best]
    alike = fit if best.count == len(wanted) else []
    rivals = [each for each in alike if each.rank[:3] == best.rank[:3] and best.prefix and each.place == best.place]
    if rivals:
        choices = " or ".join(f"'{each.keys[-1]}'" for each in (best, *rivals[:_NUM_SHOWN]))
        return f"fits the model in several ways; needed: model.weights_key, {choices}"
    return _taken(content, best, states[best.place], wanted, alike)


def states_in(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every mapping that holds tensors by name, with the keys that lead to it: the outermost first."""
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    if len(place) < _DEPTH:
        for key, value in content.items():
            if isinstance(key, str):
                yield from states_in(value, (*place, key))


def _rank(reading: _Reading) -> tuple[Any, ...]:
    return reading.rank


def _nothing(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"holds {type(content).__name__}; allowed: a mapping of tensors by name, or a checkpoint with one"
    keys = ", ".join(f"'{key}'" for key in list(content)[:_NUM_SHOWN]) or "no keys"
    return f"holds {keys} and no tensors by name; allowed: a mapping of tensors by name, or a checkpoint with one"


def _unwrapped(state: dict[str, Tensor], wanted: Collection[str]) -> dict[str, tuple[str, Tensor]]:
    """Return tensors by their name without those of wrappers, with the name that they have in the file."""
    own = {part for name in wanted for part in name.split(".")}
    wrappers = set(_WRAPPERS) - own
    found: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        plain = ".".join(part for part in name.split(".") if part not in wrappers)
        if plain in found:  # two of a name: they are told apart by what was taken out
            return {name: (name, tensor) for name, tensor in state.items()}
        found[plain] = name, tensor
    return found


def _readings(
    place: tuple[str, ...], state: Mapping[str, tuple[str, Tensor]], wanted: Collection[str]
) -> list[_Reading]:
    """Return the ways to read a state dictionary: as it is, without a word before names, and with one."""
    dropped = Counter(prefix for name in state for prefix, rest in _splits(name) if rest in wanted)
    added = Counter(prefix for name in wanted for prefix, rest in _splits(name) if prefix and rest in state)
    found = [_Reading(place=place, prefix=prefix, count=count) for prefix, count in dropped.items()]
    plain = dropped.get("", 0)
    if plain == max(dropped.values(), default=0):
        found = [_Reading(place=place, count=plain)]
    most = max(added.values(), default=0)
    if most > max(dropped.values(), default=0):
        words = min(prefix for prefix, count in added.items() if count == most)
        found.append(_Reading(place=place, added=words, count=most))
    return found


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield every way to divide a name at a full stop, from nothing before the whole."""
    yield "", name
    for match in re.finditer(r"\.", name):
        yield name[: match.end()], name[match.end() :]


def _taken(
    content: Any,
    reading: _Reading,
    state: Mapping[str, tuple[str, Tensor]],
    wanted: Collection[str],
    alike: list[_Reading],
) -> Taken:
    inside = {name: value for name, value in state.items() if name.startswith(reading.prefix)}
    taken = {reading.added + name.removeprefix(reading.prefix): tensor for name, (_, tensor) in inside.items()}
    beside = [written for name, (written, _) in state.items() if name not in inside]
    beside += [name for name in taken if name in _BOOKKEEPING]
    holder = content
    for key in reading.place:
        holder = holder[key]
    beside += [str(key) for key, value in holder.items() if not isinstance(value, Tensor)]
    if reading.place:
        beside += [str(key) for key in content if key != reading.place[0]]
    written = [own for name, (own, _) in inside.items()]
    dropped = _common(written, [name.removeprefix(reading.prefix) for name in inside])
    ends = [name.removeprefix(reading.prefix) for name in inside]
    unwrapped = any(not own.endswith(end) for own, end in zip(written, ends, strict=True))
    return Taken(
        state={name: tensor for name, tensor in taken.items() if name not in _BOOKKEEPING},
        place=".".join(reading.place),
        dropped=dropped,
        added=reading.added,
        unwrapped=unwrapped,
        left_out=tuple(beside),
        others=tuple(each.keys[-1] for each in sorted(alike, key=_rank) if each.keys),
    )


def _common(written: list[str], names: list[str]) -> str:
    """Return the word that stands before every name as it is written, or nothing."""
    pairs = [pair for pair in zip(written, names, strict=True) if pair[1] not in _BOOKKEEPING]
    before = {own.removesuffix(name) for own, name in pairs if own.endswith(name)}
    return before.pop() if len(before) == 1 else ""


def shortened(names: Collection[str]) -> str:
    """Return the first names of many, and how many more there are."""
    shown = ", ".join(list(names)[:_NUM_SHOWN])
    return shown + (f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else "")
