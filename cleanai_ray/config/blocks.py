"""The residual blocks that the trials of a study remove before they narrow layers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from cleanai_ray.config.section import Section


class BlocksSection(Section):
    """Residual blocks that become their shortcut: named, or the cheapest for what they save. Exactly one key."""

    names: tuple[str, ...] | None = Field(
        None, min_length=1, description="Names of blocks, as `measure_blocks` and the report list them."
    )
    macs: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None, description="Share of the dense model's MACs to save at least, the cheapest blocks first."
    )
    count: PositiveInt | None = Field(None, description="Number of blocks to remove, the cheapest first.")

    @model_validator(mode="after")
    def _check(self) -> BlocksSection:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "nothing"
            raise ValueError(
                f"pruning.remove_blocks gives {found}; allowed: exactly one of {', '.join(type(self).model_fields)}"
            )
        repeated = next((name for name in self.names or () if (self.names or ()).count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"pruning.remove_blocks.names holds '{repeated}' twice; allowed: each block once")
        return self

    def __str__(self) -> str:
        if self.names is not None:
            return ", ".join(self.names)
        return f"the cheapest {self.count}" if self.count else f"the cheapest that save {self.macs:.0%} of the MACs"


RemovedBlocks = BlocksSection | Literal["auto"]
"""The blocks that go; `auto`: as many as pay, for each budget by itself."""


def in_words(blocks: RemovedBlocks) -> str:
    """Return in words which blocks go."""
    return "for each budget, those that pay" if blocks == "auto" else str(blocks)
