"""The study file that `cleanai init` writes: short, and each line with its meaning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cleanai_ray.config.json_schema import SCHEMA_LINE

if TYPE_CHECKING:
    from cleanai_ray.config.source_facts import SourceFacts

PUBLISHED_CLASSES = 1000
"""The classes of torchvision's published weights."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """What a folder of images holds.

    Attributes:
        root: The folder.
        num_classes: Its classes.
        num_training: Images of its training split.
        evaluated: The split that is scored.
        side: The median of the shorter sides of a few images, in pixels; None: unknown.
    """

    root: str
    num_classes: int
    num_training: int
    evaluated: str
    side: int | None = None


@dataclass(frozen=True, kw_only=True)
class DenseModel:
    """The model of a study file.

    Attributes:
        name: Its name.
        weights: The file of its trained weights; None: the published ones, with a new head for other classes, or
            random ones, which are trained.
        needs_new_head: Whether that file was trained on another number of classes.
        is_published: Whether there are published weights.
        source: What timm or Hugging Face says of it, if it is one of theirs.
    """

    name: str
    weights: str | None = None
    needs_new_head: bool = False
    is_published: bool = False
    source: SourceFacts | None = None


def write_template(name: str, schema_file: str, model: DenseModel, images: ImageFolder | None) -> str:
    """Return a study file.

    Args:
        name: Name of the study.
        schema_file: Path of the JSON schema from the study file's folder.
        model: Its model; without images and weights, it is trained on small digits.
        images: The images; None: digits that come with scikit-learn.
    """
    parts = (_head(name, schema_file), _model(model, images), _data(images, model.source), _sweep(), _rest(images))
    return "\n".join(parts)


def _head(name: str, schema_file: str) -> str:
    return f"""\
{SCHEMA_LINE}{schema_file}
# `cleanai plan FILE` shows every trial and computes nothing; `cleanai run FILE` runs them, and resumes if stopped.
# Keys that are left out have their defaults, which `cleanai schema` and editors show.
name: {json.dumps(name)}
question: How small can this model become before it loses more than one point of accuracy?
"""


def _model(model: DenseModel, images: ImageFolder | None) -> str:
    source, classes = model.source, 10 if images is None else images.num_classes
    if source is not None:
        shape, published, whose = list(source.input_shape), source.num_classes, "the source's"
        meaning = "its preprocessing comes with it"
    else:
        shape, published, whose = [1, 8, 8] if images is None else [3, 224, 224], PUBLISHED_CLASSES, "torchvision's"
        meaning = "one of `cleanai list models`, or any torchvision classifier"
    lines = ["model:", f"  name: {json.dumps(model.name)}  # {meaning}"]
    begins_published = model.is_published and images is not None
    if model.weights is not None and model.needs_new_head:
        lines.append(f"  weights: {json.dumps(model.weights)}  # yours, of other classes")
    elif model.weights is not None:
        lines.append(f"  weights: {json.dumps(model.weights)}  # yours; with `train` they would be trained further")
    elif not begins_published:
        lines.append("  weights: null           # or the file of your trained weights, and then without `train`")
    elif classes == published:
        lines.append(f"  weights: pretrained     # {whose}, a download; or the file of your trained weights")
    else:
        lines.append(f"  weights: pretrained     # {whose}, a download; or the file of yours, without `train`")
    lines += [
        f"  num_classes: {classes:<17}  # outputs of the classifier",
        f"  input_shape: {shape}  # channels, height, width{_told_side(images, shape[-1])}",
    ]
    if model.weights is None and not begins_published:
        lines.append("  train: {epochs: 20}     # without weights, the dense model is trained first, once, and kept")
    elif model.needs_new_head or (model.weights is None and classes != published):
        lines.append("  train: {epochs: 5, learning_rate: 0.01}  # with a new head for your classes, first and once")
    return "\n".join(lines) + "\n"


def _told_side(images: ImageFolder | None, width: int) -> str:
    """Return what to say of images that are smaller than a model's usual input."""
    if images is None or images.side is None or images.side >= width:
        return ""
    return f"; your images have {images.side}: change it if your model was trained so"


def _data(images: ImageFolder | None, source: SourceFacts | None) -> str:
    if images is None:
        return """\
data:
  name: digits            # `cleanai init --data FOLDER` is for your images
  calibration: {samples: 256}  # images without labels that importance and repair read
"""
    # At most a fifth of the images: then they are kept out of training.
    samples = max(1, min(1024, images.num_training // 5))
    width = 224 if source is None else source.input_shape[-1]
    statistics = ", mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]" if source is None else ""
    transform = f"{{resize: {round(width * 8 / 7)}{statistics}}}"
    return f"""\
data:
  name: image_folder
  root: {json.dumps(images.root)}
  batch_size: 64
  # How images are prepared, if it is not as the model's source says: `resize` is the shorter side before a crop in the
  # middle to the input's own size (resize: {width} means no crop).
  # transform: {transform}
  calibration: {{samples: {samples}}}  # images without labels that importance and repair read
"""


def _sweep() -> str:
    return """\
sweep:                    # every combination is a trial
  methods: [reconstruction, wanda, magnitude, random]  # `cleanai list methods`; random is the control
  budgets: [{macs: 0.7}, {macs: 0.5}]  # what is left of the multiply-accumulates; or ratios: [0.3]
  modes: [global]         # layers compete (global), or each gives its share (local)
"""


def _rest(images: ImageFolder | None) -> str:
    split = "test" if images is None else images.evaluated
    return f"""\
finetune: {{epochs: 3, learning_rate: 0.01}}  # epochs: 0 for none; repair, which needs no labels, is on by default

evaluation:
  split: {split}
  latency: {{batch_sizes: [1, 32]}}
  # target: {{backend: onnxruntime}}  # what will run the model, if not torch

recommend: {{max_accuracy_loss: 1.0}}  # points; of the trials within it, the cheapest is recommended

# resources: {{gpus_per_trial: 1}}  # auto by default
"""
