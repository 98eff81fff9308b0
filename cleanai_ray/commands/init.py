"""The command `init`: a commented study file to start from."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cleanai_ray.errors import StudyError

if TYPE_CHECKING:
    from cleanai_ray.commands.study_template import ImageFolder
    from cleanai_ray.config.source_facts import SourceFacts
    from cleanai_ray.data.encoded import EncodedSource

SCHEMA_FILE = "cleanai.schema.json"
"""The schema beside the study file, which its first line refers to."""

_EVALUATED = ("val", "validation", "test")
_IMAGES_LOOKED_AT = 20


def init(
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME",
            help="A name of `cleanai list models` or of torchvision, `timm:NAME` or `hf:NAME`.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Your images: a folder for each class, alone or in train/ and val/ or test/.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Your trained weights: safetensors, a state_dict or a checkpoint."),
    ] = None,
    out: Annotated[str, typer.Option(metavar="FILE", help="Study file to write.")] = "study.yaml",
) -> int:
    """Write a commented study file that `cleanai plan` accepts, and beside it the schema that editors check it by.

    Without --data, it is a small study of digits that needs no download and takes a few minutes.
    """
    _require_writable(Path(out))
    for option, value in (("--from", from_), ("--weights", weights)):
        if value is not None and data is None:
            raise StudyError(f"{option} is '{value}', and --data is missing; needed: the folder of the model's images")
    if weights is not None and not Path(weights).expanduser().exists():
        raise StudyError(f"--weights '{weights}' does not exist; needed: a file of trained weights")
    from cleanai_ray.commands.schema import schema_of_this_installation
    from cleanai_ray.commands.study_template import DenseModel, write_template
    from cleanai_ray.models.build import has_published_weights

    name = from_ or ("resnet20" if data is None else "resnet18")
    source = _source_of(name)  # says at once what is wrong with --from
    model = DenseModel(name=name, weights=weights, is_published=has_published_weights(name), source=source)
    images = None if data is None else _look_into(data)
    text = write_template(_name_of(Path(out)), SCHEMA_FILE, model, images)
    if weights is not None and _has_other_head(text):
        model = replace(model, needs_new_head=True)
        text = write_template(_name_of(Path(out)), SCHEMA_FILE, model, images)
    _require_planned(text)
    Path(out).write_text(text, encoding="utf-8")
    schema = Path(out).parent / SCHEMA_FILE
    schema.write_text(schema_of_this_installation(), encoding="utf-8")
    print(f"wrote {out}, and {schema} for editors; next: cleanai plan {shlex.quote(out)}")
    return 0


def _require_writable(out: Path) -> None:
    if out.exists():
        raise StudyError(f"--out '{out}' exists, and is not overwritten; allowed: a file that does not exist")
    if not out.parent.is_dir():
        raise StudyError(f"--out '{out}': the folder '{out.parent}' does not exist")


def _name_of(out: Path) -> str:
    """Return a study's name, made of its file's."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", out.stem).lstrip("_.-") or "study"


def _source_of(model: str) -> SourceFacts | None:
    """Return what timm or Hugging Face says of a model; None if it is not one of theirs."""
    from cleanai_ray.config.model_names import ModelName
    from cleanai_ray.config.source_facts import facts_of
    from cleanai_ray.errors import ModelError

    name = ModelName.parse(model)
    try:
        return None if name is None else facts_of(name)
    except ModelError as error:
        raise StudyError(f"--from: {error}") from error


def _look_into(folder: str) -> ImageFolder:
    from cleanai_ray.commands.study_template import ImageFolder
    from cleanai_ray.config.sections import DataSection
    from cleanai_ray.errors import DataError
    from cleanai_ray.registry import DATASETS

    try:
        source = DATASETS.get("image_folder")(DataSection(name="image_folder", root=folder), (3, 224, 224))
    except DataError as error:
        raise StudyError(f"--data '{folder}': {error}") from error
    evaluated = [split for split in _EVALUATED if split in source.splits]
    if "train" not in source.splits or not evaluated:
        found = ", ".join(source.splits)
        raise StudyError(f"--data '{folder}' holds {found}; needed: train/, alone or with val/ or test/")
    return ImageFolder(
        root=folder,
        num_classes=source.num_classes,
        num_training=source.num_samples("train"),
        evaluated=evaluated[0],
        side=_side_of(source),
    )


def _side_of(source: EncodedSource) -> int | None:
    """Return the median of the shorter sides of a few training images, in pixels; None where none can be read."""
    from statistics import median_low

    from PIL import Image

    from cleanai_ray.data.encoded import EncodedDataset

    dataset, number, sides = source.dataset("train"), source.num_samples("train"), []
    assert isinstance(dataset, EncodedDataset)
    for index in range(0, number, max(1, number // _IMAGES_LOOKED_AT)):
        try:
            with Image.open(dataset.encoded(index)[0]) as image:
                sides.append(min(image.size))
        except OSError:
            continue
    return median_low(sides) if sides else None


def _has_other_head(text: str) -> bool:
    """Return whether the weights of a study file were trained on another number of classes.

    Raises:
        StudyError: When they cannot be read.
    """
    import yaml

    from cleanai_ray.config.study import parse_study
    from cleanai_ray.errors import ModelError
    from cleanai_ray.models.build import needs_new_head

    try:
        return needs_new_head(parse_study(yaml.safe_load(text)).model)
    except ModelError as error:
        raise StudyError(f"--weights: {error}") from error


def _require_planned(text: str) -> None:
    """Refuse what `cleanai plan` would refuse, before anything is written."""
    import yaml

    from cleanai_ray.config.study import parse_study
    from cleanai_ray.stages.planning import check_study

    check_study(parse_study(yaml.safe_load(text)))
