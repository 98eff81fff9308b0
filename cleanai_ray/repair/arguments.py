"""The argument `repair` of `prune`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cleanai_ray.config.messages import checked
from cleanai_ray.config.sections import RepairSection
from cleanai_ray.errors import PruningError
from cleanai_ray.repair import COMPENSATIONS, RepairOptions


def repair_options(
    repair: bool | str | Mapping[str, Any], batches: Iterable[Any] | None, seed: int
) -> RepairOptions | None:
    """Return the repair that `prune` was asked for, or None."""
    if repair is False:
        return None
    if not isinstance(repair, Mapping) and repair not in (True, "auto", *COMPENSATIONS[1:]):
        allowed = ", ".join(f"'{name}'" for name in ("auto", *COMPENSATIONS[1:]))
        raise PruningError(f"repair is {repair!r}; allowed: True, False, {allowed}, or keys of the section repair")
    given = dict(repair) if isinstance(repair, Mapping) else {"compensation": "auto" if repair is True else repair}
    if "compensation" in given and given["compensation"] != "auto":
        given = {"batch_norm": "relative", **given}
    if "samples" in given:
        raise PruningError("repair has the key 'samples'; allowed: the other keys, since every batch given is read")
    section = checked(RepairSection, **given)
    if batches is None:
        raise PruningError(f"repair is {repair!r} and reads calibration images, but batches is None; pass batches")
    return RepairOptions(**section.model_dump(exclude={"samples"}), seed=seed)
