"""What timm says of a model: the configuration of its pretrained weights, without building the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cleanai_ray.config.images import TransformSection
from cleanai_ray.config.model_names import ModelName
from cleanai_ray.config.source_facts import SourceFacts, said_in_a_line
from cleanai_ray.errors import ModelError

_KNOWN = ("nearest", "bilinear", "bicubic")
_WEIGHTS_FILES = ("*.safetensors", "*.pth", "*.pth.tar", "*.bin")
"""What `timm.models.load_state_dict_from_path` takes from a folder."""
_WEIGHTS_PLACES = ("url", "file", "hf_hub_id")
"""Fields of `timm.models.PretrainedCfg`, all of them empty where there are no weights."""


def timm_name(name: ModelName) -> str:
    """Return the name by which timm knows a model: a folder is one of its local directories."""
    return name.name if name.folder is None else f"local-dir:{name.folder}"


def read_facts(name: ModelName, options: Mapping[str, Any]) -> SourceFacts:
    """Return what timm says of a model.

    The preprocessing is that of `timm.data.resolve_data_config`, as timm validates: the image is resized to the input's
    size divided by `crop_pct`, and its centre cut out.

    Raises:
        ModelError: When timm does not know the model, or cannot reach it.
    """
    from timm.data import resolve_data_config

    pretrained = _pretrained_config(name, options)
    size = options.get("img_size")
    sides = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    given = {} if sides is None else {"input_size": (3, *sides)}
    found = resolve_data_config(given, pretrained_cfg=pretrained)
    channels, height, width = found["input_size"]
    crop, notes = found["crop_pct"], []
    side = max(height, width)
    resize: int | tuple[int, int] = math.floor(side / crop)
    if found["crop_mode"] == "squash":
        resize = math.floor(height / crop), math.floor(width / crop)
    elif found["crop_mode"] == "border":
        notes.append(f"timm pads the images of {name} to their longer side; here their shorter side is resized")
    interpolation = found["interpolation"]
    if interpolation not in _KNOWN:
        notes.append(f"timm resizes the images of {name} with '{interpolation}' interpolation; here it is bicubic")
        interpolation = "bicubic"
    transform = TransformSection(
        resize=resize, crop=side, interpolation=interpolation, mean=tuple(found["mean"]), std=tuple(found["std"])
    )
    return SourceFacts(
        num_classes=int(options.get("num_classes", pretrained.get("num_classes", 1000))),
        input_shape=(int(options.get("in_chans", channels)), int(height), int(width)),
        transform=transform,
        has_weights=_has_weights(name, pretrained),
        class_names=tuple(map(str, pretrained.get("label_names") or ())),
        notes=tuple(notes),
    )


def _has_weights(name: ModelName, pretrained: Mapping[str, Any]) -> bool:
    """Return whether a folder holds weights, or a configuration of timm's names a place of some, as many do not."""
    if name.folder is not None:
        return any(next(name.folder.glob(pattern), None) is not None for pattern in _WEIGHTS_FILES)
    return name.name.startswith("hf-hub:") or any(pretrained.get(key) for key in _WEIGHTS_PLACES)


def _pretrained_config(name: ModelName, options: Mapping[str, Any]) -> dict[str, Any]:
    import timm

    known = timm_name(name)
    try:
        if known.startswith("local-dir:"):
            return _local_config(Path(known.removeprefix("local-dir:")))
        if known.startswith("hf-hub:"):
            where = {"cache_dir": options["cache_dir"]} if "cache_dir" in options else {}
            return dict(timm.models.load_model_config_from_hf(known.removeprefix("hf-hub:"), **where)[0])
        found = timm.models.get_pretrained_cfg(known)
        if found is None and not timm.is_model(known.partition(".")[0]):
            raise ModelError(_unknown(name, timm.list_models(f"*{known.partition('.')[0][:6]}*")))
        return {} if found is None else dict(found.to_dict())
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"model.name is '{name}', which timm cannot find: {said_in_a_line(error)}") from error


def _local_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of the weights in a folder that timm wrote (`timm.models.save_for_hf`)."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: content[key] for key in ("num_classes", "label_names") if key in content}
    return {**content.get("pretrained_cfg", content), **kept}


def _unknown(name: ModelName, close: list[str]) -> str:
    hint = f" (close: {', '.join(close[:5])})" if close else ""
    return f"model.name is '{name}', and timm has no model '{name.name}'{hint}; `timm.list_models()` names them"
