"""A small Faster R-CNN (Ren et al. 2015): `model.factory: cleanai_ray.models.small_faster_rcnn:build`."""

from __future__ import annotations

from torch import nn

from cleanai_ray.models.small_ssd import Backbone


def build(num_classes: int, size: int = 64, width: int = 16, hidden: int = 64, proposals: int = 50) -> nn.Module:
    """Return a detector of two stages with random weights; its arguments are `model.options`.

    Args:
        num_classes: Classes, the background included.
        size: Height and width of the images.
        width: Channels of the first layer.
        hidden: Units of the second stage's layers.
        proposals: Boxes of an image that the second stage looks at.
    """
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    backbone, pooled = Backbone(width), 4
    backbone.out_channels = 4 * width  # type: ignore[assignment]  # of both maps
    sizes = ((size // 4,), (size // 2,))
    return FasterRCNN(
        backbone,
        min_size=size,
        max_size=size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 2),
        rpn_post_nms_top_n_train=2 * proposals,
        rpn_post_nms_top_n_test=proposals,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], pooled, 2),
        box_head=TwoMLPHead(4 * width * pooled**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_classes),
        box_batch_size_per_image=proposals,
        box_detections_per_img=20,
    )
