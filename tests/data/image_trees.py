"""Small trees in the real formats, made of scikit-learn's real digit images."""

from __future__ import annotations

import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.data import open_image_source
from cleanai_ray.data.source import ImageSource


def opened(name: str, *, num_classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32), **fields) -> ImageSource:
    data = DataSection(name=name, **fields)
    return open_image_source(data, ModelSection(name="resnet18", num_classes=num_classes, input_shape=shape))


def colour_image(digit: np.ndarray, size: int = 40) -> Image.Image:
    grey = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
    return Image.merge("RGB", (grey, grey.rotate(90), grey.transpose(Image.Transpose.FLIP_TOP_BOTTOM)))


def encoded(digit: np.ndarray, form: str = "JPEG", size: int = 40) -> bytes:
    stream = io.BytesIO()
    colour_image(digit, size).save(stream, format=form)
    return stream.getvalue()


def write_idx(path: Path, array: np.ndarray) -> None:
    content = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(folder: Path, images: np.ndarray, labels: np.ndarray, *, ending: str = ".gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, part in (("train", slice(0, 60)), ("t10k", slice(60, 80))):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{ending}", images[part])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{ending}", labels[part].astype(np.uint8))


def write_hub_parquet(
    path: Path,
    images: list[bytes | None],
    labels: list[int],
    *,
    names: list[str] | None = None,
    plain: bool = False,
    columns: tuple[str, str] = ("image", "label"),
    row_group_size: int = 4,
) -> None:
    """Write a Parquet file as the `datasets` library does: a struct of bytes and path, features in the metadata."""
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = (
        pa.array(images, pa.binary())
        if plain
        else pa.array([{"bytes": image, "path": f"{place}.png"} for place, image in enumerate(images)], struct_type)
    )
    table = pa.table({columns[0]: values, columns[1]: pa.array(labels, pa.int64())})
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
