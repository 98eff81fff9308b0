"""The raw outputs of detectors: a class and a box at each place, before boxes are selected.

Tensors have the form [N, values, places, 1, 1]: the dependency graph ends where channels are in blocks of five
dimensions, so that nothing here is taken for a layer's channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cleanai_ray.errors import TaskError

Head = tuple[Tensor, Tensor]
"""Class logits [N, 1 + classes, places, 1, 1], those of the background first, and boxes [N, 4, places, 1, 1]: shifts
and logarithms of sizes, in units of what the box is predicted from (an anchor, for instance)."""

ONE_STAGE = ("transform", "backbone", "head", "anchor_generator")
TWO_STAGES = ("transform", "backbone", "rpn", "roi_heads")
OWN = "raw_outputs"


def require_detector(model: Any) -> None:
    """Refuse a model whose raw outputs cannot be found.

    Raises:
        TaskError: When it is neither one of torchvision's detectors nor has `raw_outputs`.
    """
    if hasattr(model, OWN):
        return
    missing = [part for part in (TWO_STAGES if hasattr(model, "roi_heads") else ONE_STAGE) if not hasattr(model, part)]
    if missing:
        raise TaskError(
            f"{type(model).__name__} has no '{missing[0]}'; allowed for task detection: torchvision's detectors, for "
            f"instance ssdlite320_mobilenet_v3_large or fasterrcnn_mobilenet_v3_large_fpn, and models with {OWN}()"
        )
    more = [part for part in ("mask", "keypoint") if getattr(getattr(model, "roi_heads", None), f"{part}_head", None)]
    if more:
        raise TaskError(f"{type(model).__name__} predicts {more[0]}s, too; allowed for task detection: boxes alone")


def heads_of(network: Any, images: Tensor) -> list[Head]:
    """Return what the heads of a detector say of images [N, 3, H, W].

    Raises:
        TaskError: When `raw_outputs` of a model of one's own returns something else.
    """
    if hasattr(network, OWN):
        return [_own(network.raw_outputs(images), type(network).__name__)]
    batch, _ = network.transform(list(images))
    features = network.backbone(batch.tensors)
    maps = features if isinstance(features, dict) else {"0": features}
    if hasattr(network, "roi_heads"):
        return _two_stages(network, batch, maps)
    return [_one_stage(network, network.head(list(maps.values())))]


def _own(found: Any, name: str) -> Head:
    is_head = isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(each, Tensor) for each in found)
    if not is_head or found[0].dim() != 3 or found[1].shape != (len(found[0]), 4, found[0].shape[2]):
        described = [_described(each) for each in found] if isinstance(found, (tuple, list)) else _described(found)
        raise TaskError(
            f"{OWN}() of {name} returns {described}; allowed: class logits [N, 1 + classes, places], those of the "
            "background first, and boxes [N, 4, places]"
        )
    logits, boxes = (each.float().reshape(*each.shape, 1, 1) for each in found)
    return logits, boxes


def _described(value: Any) -> Any:
    """Return the shape of a tensor, or the type of anything else."""
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _one_stage(network: Any, found: dict[str, Tensor]) -> Head:
    from torchvision.models.detection.ssd import SSD

    logits, boxes = (_apart(found[key]) for key in ("cls_logits", "bbox_regression"))
    if not isinstance(network, SSD):  # a sigmoid for each class
        logits = with_background(_scores(logits, found))
    weights = getattr(network.box_coder, "weights", None)
    # FCOS predicts distances to the four sides, which have no upper limit.
    return logits, torch.log1p(boxes.clamp_min(0.0)) - 1.0 if weights is None else boxes / _column(weights, boxes)


def _apart(values: Tensor) -> Tensor:
    """Return [N, places, values] as [N, values, places, 1, 1]."""
    return values.float().reshape(*values.shape, 1, 1).transpose(1, 2)


def _column(weights: Any, like: Tensor) -> Tensor:
    return like.new_tensor(weights).reshape(1, -1, 1, 1, 1)


def with_background(logits: Tensor) -> Tensor:
    """Return logits of independent classes [N, classes, ...] with those of the background, which are 0.

    The softmax of both is the distribution of the classes, given that at most one of them is there.
    """
    return torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)


def _scores(logits: Tensor, found: dict[str, Tensor]) -> Tensor:
    """Return the logits of the scores; FCOS takes the geometric mean of a class's and that of being in the centre."""
    if "bbox_ctrness" not in found:
        return logits
    centre = torch.nn.functional.logsigmoid(_apart(found["bbox_ctrness"]))
    mean = (torch.nn.functional.logsigmoid(logits) + centre) / 2
    return mean - torch.log1p(-mean.exp().clamp_max(1 - 1e-6))


def _two_stages(network: Any, batch: Any, maps: dict[str, Tensor]) -> list[Head]:
    """Return what the first stage says of anchors, and the second of some of them, the same for every model.

    The boxes that the first stage proposes differ from model to model, so that no two models could be compared there.
    As many anchors stand for them as are proposed at the most.
    """
    levels = list(maps.values())
    objectness, deltas = network.rpn.head(levels)
    anchors = network.rpn.anchor_generator(batch, levels)
    chosen = _spread([each[0].numel() for each in objectness], network.rpn.post_nms_top_n())
    proposals = [
        _clipped(each[chosen.to(each.device)], size) for each, size in zip(anchors, batch.image_sizes, strict=True)
    ]
    second = network.roi_heads
    pooled = second.box_head(second.box_roi_pool(maps, proposals, batch.image_sizes))
    logits, boxes = second.box_predictor(pooled)
    first = _proposed(objectness, deltas, network.rpn.box_coder)
    return [first, _classified(logits, boxes, len(batch.image_sizes), second.box_coder)]


def _spread(sizes: list[int], most: int) -> Tensor:
    """Return places in a list of levels of some sizes: at most a share of `most` of each, evenly spread."""
    share, starts = -(-most // len(sizes)), torch.tensor([0, *sizes[:-1]]).cumsum(0)
    levels = [torch.linspace(0, size - 1, min(size, share)).round().long() for size in sizes]
    return torch.cat([start + level for start, level in zip(starts, levels, strict=True)])


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    most = boxes.new_tensor([size[1], size[0]] * 2)
    return torch.minimum(boxes.clamp_min(0.0), most)


def _proposed(objectness: list[Tensor], deltas: list[Tensor], coder: Any) -> Head:
    # Channels are anchors times values, and torchvision numbers places level by level.
    logits = torch.cat([each.float().reshape(len(each), 1, -1, 1, 1) for each in objectness], 2)
    parts = [
        values.float().reshape(len(values), each.shape[1], 4, *each.shape[2:]).transpose(1, 2)
        for each, values in zip(objectness, deltas, strict=True)
    ]
    boxes = torch.cat([each.reshape(len(each), 4, -1, 1, 1) for each in parts], 2)
    return with_background(logits), boxes / _column(coder.weights, boxes)


def _classified(logits: Tensor, boxes: Tensor, number: int, coder: Any) -> Head:
    """Return logits [N * P, C] and boxes [N * P, 4 C] by image, of the boxes the mean over classes but background."""
    classes = logits.shape[1]
    shaped = logits.float().reshape(number, -1, classes, 1, 1)
    every = boxes.float().reshape(number, -1, classes, 4, 1)
    mean = (every[:, :, 1:] * shaped[:, :, 1:].softmax(2)).sum(2, keepdim=True).permute(0, 3, 1, 2, 4)
    return shaped.transpose(1, 2), mean / _column(coder.weights, mean)
