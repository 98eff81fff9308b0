"""The study file that `cleanai init` writes: short, and each line with its meaning."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cleanai_ray.config.json_schema import SCHEMA_LINE

TIMM = "timm:"
"""The start of a model's name that timm builds."""

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
    """

    root: str
    num_classes: int
    num_training: int
    evaluated: str


def write_template(name: str, schema_file: str, model: str, images: ImageFolder | None) -> str:
    """Return a study file.

    Args:
        name: Name of the study.
        schema_file: Path of the JSON schema from the study file's folder.
        model: A registered or torchvision name, or `timm:NAME`; without images, it is trained on small digits.
        images: The images; None: digits that come with scikit-learn.
    """
    parts = (_head(name, schema_file), _model(model, images), _data(images), _sweep(), _rest(images))
    return "\n".join(parts)


def _head(name: str, schema_file: str) -> str:
    return f"""\
{SCHEMA_LINE}{schema_file}
# `cleanai plan FILE` shows every trial and computes nothing; `cleanai run FILE` runs them, and resumes if stopped.
# Keys that are left out have their defaults, which `cleanai schema` and editors show.
name: {json.dumps(name)}
question: How small can this model become before it loses more than one point of accuracy?
"""


def _model(model: str, images: ImageFolder | None) -> str:
    shape, classes = ([1, 8, 8], 10) if images is None else ([3, 224, 224], images.num_classes)
    weights = "null           # or the file of your trained weights (safetensors or a state_dict), without `train`"
    lines = ["model:"]
    if model.startswith(TIMM):
        options = f"{{model_name: {json.dumps(model.removeprefix(TIMM))}, pretrained: false}}"
        lines += [
            "  factory: timm:create_model",
            f"  options: {options}  # pretrained: true starts from timm's weights, a download",
        ]
    else:
        lines.append(f"  name: {json.dumps(model)}  # one of `cleanai list models`, or any torchvision classifier")
    published = images is not None and classes == PUBLISHED_CLASSES and not model.startswith(TIMM)
    if published:
        lines.append("  weights: pretrained     # torchvision's, a download; or a file of your own")
    else:
        lines.append(f"  weights: {weights}")
    lines += [f"  num_classes: {classes}", f"  input_shape: {shape}  # channels, height, width"]
    if not published:
        lines.append("  train: {epochs: 20}     # the dense model is trained once, and kept")
    return "\n".join(lines) + "\n"


def _data(images: ImageFolder | None) -> str:
    if images is None:
        return """\
data:
  name: digits            # `cleanai init --data FOLDER` is for your images
  calibration: {samples: 256}  # images without labels that importance and repair read
"""
    # At most a fifth of the images: then they are kept out of training.
    samples = max(1, min(1024, images.num_training // 5))
    return f"""\
data:
  name: image_folder
  root: {json.dumps(images.root)}
  batch_size: 64
  # transform: {{resize: 256, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}  # as your model was trained
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
