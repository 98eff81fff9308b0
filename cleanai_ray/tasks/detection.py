"""Object detection with torchvision's detectors, and others that are called like them: boxes and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import EvaluationError, TaskError
from cleanai_ray.nn.modes import preserved_modes
from cleanai_ray.nn.view import as_model, as_network, own_forward
from cleanai_ray.registry import TASKS
from cleanai_ray.tasks.base import Reduce, Scorer, Task
from cleanai_ray.tasks.detector_heads import heads_of, require_detector
from cleanai_ray.tasks.exchange import of_all_processes
from cleanai_ray.tasks.judged_boxes import judged
from cleanai_ray.tasks.score import NoLabelError, TaskScore

Targets = Sequence[dict[str, Tensor]]
_LAST = ("cls_logits", "bbox_reg", "bbox_ctrness", "bbox_pred", "cls_score")
_HEADS = ("head.", "rpn.head.", "roi_heads.box_predictor.")
_STAGES = ("rpn", "roi_heads")


class MeanAveragePrecision(Scorer):
    """Mean average precision over IoU 0.50 to 0.95 as COCO defines it, by torchmetrics, and the detector's own loss.

    Raises:
        TaskError: When torchmetrics, or pycocotools, which it reads, is missing.
    """

    def __init__(self) -> None:
        try:
            from torchmetrics.detection import MeanAveragePrecision as Library
        except ImportError as error:
            raise TaskError("mAP is computed by torchmetrics; pip install 'cleanai-ray[detection]'") from error
        try:
            # Of several processes, one may score alone: the library must not wait for the others.
            self._library = Library(box_format="xyxy", iou_type="bbox", sync_on_compute=False)
        except ImportError as error:
            raise TaskError(f"mAP needs more than torchmetrics: {' '.join(str(error).split())}") from error
        self._loss: Tensor | float = 0.0
        self._num_samples = 0

    def add(self, predicted: tuple[list[dict[str, Tensor]], Tensor], targets: Targets) -> None:
        """Add a batch: (detections of each image, mean loss), and the boxes and labels of each image."""
        found, loss = predicted
        self._library.update(found, list(targets))
        self._loss = self._loss + loss.double() * len(targets)
        self._num_samples += len(targets)

    def result(self, all_reduce: Reduce | None = None) -> TaskScore:
        """Return the mean average precision; it is no sum, so that torch's processes exchange what they found.

        It is the mean over the classes that have a box in any image. An image without a box only counts by what is
        found there, which is wrong for each of these classes.

        Raises:
            EvaluationError: When nothing was added.
            NoLabelError: When no image has a box, so that there is no class to average over.
        """
        loss, number = float(self._loss), self._num_samples
        if all_reduce is not None:
            shares = of_all_processes((self._library.metric_state, loss, number))
            for name in self._library.metric_state:
                setattr(self._library, name, [item for share, _, _ in shares for item in share[name]])
            loss, number = (sum(share[place] for share in shares) for place in (1, 2))
        if not number:
            raise EvaluationError("there are 0 batches to evaluate on, at least 1 is needed")
        value = float(self._library.compute()["map"])
        if value < 0.0:  # COCO's mark of a mean over nothing
            raise NoLabelError(f"none of {number} images has a box that counts; at least 1 with a box is needed")
        return TaskScore("mAP", value, value, loss / number, number)

    def mean_loss(self) -> tuple[float, int]:
        """Return the mean loss, and the number of images; the precision, which takes long, is not computed."""
        if not self._num_samples:
            raise EvaluationError("there are 0 batches to evaluate on, at least 1 is needed")
        return float(self._loss) / self._num_samples, self._num_samples


def _learned(targets: Targets) -> list[dict[str, Tensor]]:
    """Return targets without the boxes that count neither for nor against a detector, those with `iscrowd` 1."""
    found = []
    for target in targets:
        kept = target["iscrowd"] == 0 if "iscrowd" in target else slice(None)
        found.append({name: values[kept] for name, values in target.items() if name in ("boxes", "labels")})
    return found


def _is_last(model: nn.Module, name: str) -> bool:
    """Return whether a layer of the heads is one whose outputs are classes or boxes."""
    owner, _, leaf = name.rpartition(".")
    parent = model.get_submodule(owner)
    if isinstance(parent, nn.Sequential):
        return leaf == list(parent._modules)[-1]
    return isinstance(parent, nn.ModuleList) or leaf in _LAST


def _raw_heads(network: Any, images: Tensor) -> tuple[Tensor, ...]:
    """Return the logits that detectors are compared by, and all that the heads say, [N, values, places]."""
    heads = heads_of(network, images)
    return judged(heads), *(values.flatten(2) for head in heads for values in head)


def _losses(model: nn.Module, images: Tensor, targets: Targets) -> Tensor:
    """Return the sum of a detector's mean losses; its layers stay in the mode that they are in.

    Detectors of two stages draw the boxes that count: here they are always the same.
    """
    devices = [images.device] if images.is_cuda else []
    with preserved_modes(model), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        # The flags of the detector itself and of its stages, which decide whether losses are returned.
        for part in (model, *(getattr(model, name) for name in _STAGES if hasattr(model, name))):
            part.training = True
        losses = own_forward(model)(list(images), _learned(targets))
    return torch.stack(list(losses.values())).sum()


@TASKS.register("detection")
class Detection(Task):
    """Object detection: a dict of boxes [n, 4] (xyxy, pixels) and labels [n] an image; mAP (torchmetrics).

    Where a dict has `iscrowd` [n], too, boxes with 1 are not learned, and detections that match one are not counted, as
    in COCO.

    For torchvision's detectors: SSD, SSDlite, RetinaNet, FCOS and Faster R-CNN. Models of one's own are called like
    them: a list of images and, in training, a list of targets; they return a dict of losses in training, and else a
    dict of boxes, labels and scores an image. Their `raw_outputs(images)` returns class logits
    [N, 1 + classes, places], those of the background first, and boxes [N, 4, places] in units of about the size of
    what they are predicted from.

    Images of a batch have one size, [N, 3, H, W]. Repair compares classes and boxes at every place of the heads (see
    `judged_boxes`). The layers whose outputs are classes and boxes keep their width.
    """

    name = "detection"
    metric_name = "mAP"

    def network(self, model: nn.Module) -> nn.Module:
        """Return a view of the detector that returns the outputs of its heads.

        Raises:
            TaskError: When the model is no detector of these.
        """
        require_detector(model)
        return as_network(model, _raw_heads)

    def restored(self, network: nn.Module) -> nn.Module:
        """Return the detector itself."""
        return as_model(network)

    def ignored_layers(self, model: nn.Module) -> tuple[str, ...]:
        """Return the names of the heads' last layers, whose channels are anchors times classes or boxes."""
        found = []
        for name, module in model.named_modules():
            if name.startswith(_HEADS) and isinstance(module, (nn.Conv2d, nn.Linear)) and _is_last(model, name):
                found.append(name)
        return tuple(found)

    def chosen(self, predicted: Any, targets: Targets, places: Sequence[int]) -> tuple[Any, Any]:
        """Return the detections and the boxes of some images; the loss is the batch's mean."""
        found, loss = predicted
        return ([found[place] for place in places], loss), [targets[place] for place in places]

    def train_outputs(self, model: nn.Module, inputs: Tensor, targets: Targets) -> Any:
        """Return the dict of losses."""
        return model(list(inputs), _learned(targets))

    def logits(self, outputs: Any) -> Tensor:
        """Refuse: a detector in training returns only losses."""
        raise TaskError("finetune.distillation is set, and a detector in training returns only losses; allowed: null")

    def loss(self, outputs: Any, targets: Targets, label_smoothing: float = 0.0) -> Tensor:
        """Return the sum of the detector's losses; label smoothing is refused."""
        if label_smoothing:
            raise TaskError(f"finetune.label_smoothing is {label_smoothing:g}; allowed for task detection: 0")
        return torch.stack(list(outputs.values())).sum()

    def network_loss(self, network: nn.Module, inputs: Tensor, targets: Targets) -> Tensor:
        """Return the sum of the detector's losses."""
        return _losses(network, inputs, targets)

    def hits(self, outputs: Any, targets: Targets) -> None:
        """Return None: a detector in training returns losses, and no answers to count."""

    def predict(self, model: nn.Module, inputs: Tensor, targets: Targets) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Return the detections of each image, and the mean loss."""
        found = model(list(inputs))
        if not isinstance(found, list) or not all(isinstance(entry, dict) and "boxes" in entry for entry in found):
            raise EvaluationError(
                f"the model's output is {type(found).__name__}, allowed is a list of dicts of boxes, labels and scores"
            )
        return found, _losses(model, inputs, targets)

    def new_scorer(self) -> Scorer:
        """Return a scorer without samples."""
        return MeanAveragePrecision()
