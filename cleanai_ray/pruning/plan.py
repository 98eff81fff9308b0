"""The plan: the blocks that go, and the channels that each group loses. Plain JSON, whatever method chose them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cleanai_ray.config.digests import digest
from cleanai_ray.display.tables import Displayed, Summary
from cleanai_ray.errors import ArtifactError, PruningError
from cleanai_ray.graph.block import Block
from cleanai_ray.pruning.explain import explain_plan
from cleanai_ray.pruning.summary import in_short, summary_of_plan

PLAN_FORMAT = "cleanai-plan/2"
BLOCK_PLAN_FORMAT = "cleanai-plan/3"  # Removes whole blocks, which earlier versions would leave in place.
LATER_PLAN_FORMAT = "cleanai-plan/4"  # Is for a model that was pruned before, by plans which it holds.
_FORMATS = (
    "cleanai-plan/1",
    PLAN_FORMAT,
    BLOCK_PLAN_FORMAT,
    LATER_PLAN_FORMAT,
)  # The first lacks the layers and the blocks of a group.

BIASES = "biases"
"""Key of an earlier plan's `model`: the names of all biases that its layers had when the next plan was made."""

PLAIN = "plain"
"""Key of a plan's `model`: the names of the layers of another form that plain ones stood for; absent where none did."""

TIED = "tied"
"""Key of a plan's `model`: the names of each parameter that layers share, before the cut and after; absent without."""


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """The channels that one dependency group loses.

    Attributes:
        name: Name of the group: the layer whose output channels number it.
        num_channels: Channels in the dense model.
        removed: Channels that are removed, in dense numbering, ascending.
        num_blocks: Equal blocks that stay equally wide (heads, groups of a convolution); 1 if there are none.
        outputs: Layers whose output narrows with the group, norms included; empty in a plan of the first format.
        inputs: Layers that read the group's channels.
    """

    name: str
    num_channels: int
    removed: tuple[int, ...]
    num_blocks: int = 1
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if list(self.removed) != sorted(set(self.removed)) or not all(0 <= i < self.num_channels for i in self.removed):
            raise PruningError(
                f"group '{self.name}' of the plan: removed channels must be ascending, distinct and in "
                f"[0, {self.num_channels})"
            )

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that the group cuts, once: first those that narrow, then those that read them."""
        return tuple(dict.fromkeys([*self.outputs, *self.inputs]))

    def __repr__(self) -> str:
        return f"GroupPlan({self.name}: {self.num_channels} -> {self.num_channels - len(self.removed)} channels)"


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """A residual block whose branch is removed.

    Attributes:
        block: The branch, and how it is removed.
        mean: Mean of what the branch gave for each channel, which stays in its place, [C].
        macs: Multiply-accumulates of its layers in the dense model.
    """

    block: Block
    mean: tuple[float, ...]
    macs: int = 0

    def __post_init__(self) -> None:
        channels = math.prod(self.block.shape)
        if len(self.mean) != channels or not all(map(math.isfinite, self.mean)):
            raise PruningError(
                f"block '{self.name}' of the plan: its mean has {len(self.mean)} values; allowed: {channels} finite "
                "numbers"
            )

    @property
    def name(self) -> str:
        """Name of the block."""
        return self.block.name

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> BlockPlan:
        """Return the plan that `dataclasses.asdict` made a dict of, which may have been JSON in between."""
        return BlockPlan(**{**_with_tuples(fields), "block": Block(**_with_tuples(fields["block"]))})

    def __repr__(self) -> str:
        return f"BlockPlan({self.name}: {len(self.block.layers)} layers, {self.macs:,} MACs)"


@dataclass(frozen=True, kw_only=True)
class PruningPlan(Displayed):
    """A choice of channels that can be inspected, saved, and applied to the dense model again.

    Attributes:
        model: Identity of the dense model: class, shape digest of its parameters, example input shape; `plain`, the
            names of the layers that plain ones stand for in the pruned model (convolutions that standardise their
            weight, transformers' `Conv1D`), if there are any; `tied`, the names of each parameter that layers share and
            still do in the pruned model (after a cut by an earlier version, whose plans lack it, they do not).
        groups: Every prunable group, pruned or not.
        request: The request: method, mode, ratio or budget, bounds (with every ignored layer); `by_price` if the
            method's prices and not its mode decided between groups.
        achieved: The result: channel ratio, params, macs and size_bytes, dense and pruned (repair may add biases),
            and for a latency budget the measurement.
        warnings: Sentences that the user should know.
        blocks: The blocks that are removed, in execution order, before any channel is; the groups are those of the
            model without them.
        earlier: The plans by which the model had been pruned before, the first first: this plan is for what they leave
            of the dense model.
    """

    model: Mapping[str, Any]
    groups: tuple[GroupPlan, ...]
    request: Mapping[str, Any] = field(default_factory=dict)
    achieved: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    blocks: tuple[BlockPlan, ...] = ()
    earlier: tuple[PruningPlan, ...] = ()

    def explain(self) -> str:
        """Return the plan as a table to print: what each group loses and why, and how much that saves in all."""
        return explain_plan(self)

    def summary(self) -> Summary:
        """Return the plan as tables, which notebooks show in place of it."""
        return summary_of_plan(self)

    def __repr__(self) -> str:
        return f"PruningPlan({in_short(self)})"

    @property
    def removed(self) -> dict[str, tuple[int, ...]]:
        """The removed channels of each group that loses any."""
        return {group.name: group.removed for group in self.groups if group.removed}

    @property
    def channel_ratio(self) -> float:
        """Share of the prunable channels that are removed."""
        total = sum(group.num_channels for group in self.groups)
        return sum(len(group.removed) for group in self.groups) / total if total else 0.0

    def with_weights(self, content: bytes) -> PruningPlan:
        """Return the plan with the checksum of its weights file."""
        return replace(self, model={**self.model, "weights_sha256": hashlib.sha256(content).hexdigest()})

    def to_json(self) -> str:
        """Return the plan as a JSON document, with a checksum of its own."""
        document = self._document()
        return json.dumps({**document, "digest": digest(document)}, indent=1) + "\n"

    def _document(self) -> dict[str, Any]:
        """Return the plan as JSON values, without what it has not got."""
        known = LATER_PLAN_FORMAT if self.earlier else BLOCK_PLAN_FORMAT if self.blocks else PLAN_FORMAT
        document = {"format": known, **asdict(self), "earlier": [plan._document() for plan in self.earlier]}
        for key in ("blocks", "earlier"):
            if not document[key]:
                del document[key]
        return document

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """Read a plan.

        Raises:
            ArtifactError: When the text is not a plan, or was changed or cut off.
        """
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise ArtifactError(f"the plan is not JSON (corrupted or cut off): {error}") from error
        if not isinstance(document, dict) or document.get("format") not in _FORMATS:
            raise ArtifactError(f"the file is not a pruning plan: its format is not '{_FORMATS[-1]}' or an earlier one")
        stated = document.pop("digest", None)
        if stated != digest(document):
            raise ArtifactError("the plan was changed after it was written: its digest does not match its content")
        return _read_plan(document)


def _read_plan(document: Mapping[str, Any]) -> PruningPlan:
    return PruningPlan(
        model=document["model"],
        groups=tuple(_read_group(group) for group in document["groups"]),
        request=document["request"],
        achieved=document["achieved"],
        warnings=tuple(document["warnings"]),
        blocks=tuple(BlockPlan.from_dict(block) for block in document.get("blocks", ())),
        earlier=tuple(_read_plan(plan) for plan in document.get("earlier", ())),
    )


def _read_group(fields: Mapping[str, Any]) -> GroupPlan:
    return GroupPlan(**_with_tuples(fields))


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
