"""Make small data sets for the studies of other tasks than classification, in a minute and without a download.

python jobs/make_task_data.py artifacts/task_data

segmentation   two garments of Fashion-MNIST on a noisy canvas, and a mask of their kinds
labels         the same in colour, and a table of the kinds on each
detection      the same on larger canvases, with a box around each garment, as COCO writes them
text           the descriptions of Python's language and library that come with every Python (pydoc_data)
table          Friedman's first function (1991): ten columns, of which five decide on the target
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
KINDS = ("background", "top", "trouser", "shoe", "bag")
KIND_OF_LABEL = (1, 2, 1, 1, 1, 3, 1, 3, 4, 3)
"""The kind of each of Fashion-MNIST's ten classes, as a place in KINDS."""
SIZE, GARMENT = 32, 18
SEED = 0


def garments(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, 28, 28] and labels [N] of Fashion-MNIST's idx files."""
    prefix = {"train": "train", "val": "t10k"}[split]
    images = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def canvas(
    images: np.ndarray, labels: np.ndarray, generator: np.random.Generator, side: int = SIZE, garment: int = GARMENT
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, list[int]]]]:
    """Return an image and a mask uint8 [side, side] of two garments; and the kind of each, with its box."""
    picture = generator.integers(0, 60, (side, side)).astype(np.uint8)
    mask = np.zeros((side, side), np.uint8)
    boxes = []
    for index in generator.integers(0, len(images), 2):
        size = int(generator.integers(garment - 4, garment + 5))
        small = np.asarray(Image.fromarray(images[index]).resize((size, size), Image.Resampling.BILINEAR))
        top, left = generator.integers(0, side - size + 1, 2)
        is_there, kind = small > 20, KIND_OF_LABEL[labels[index]]
        place = slice(top, top + size), slice(left, left + size)
        picture[place] = np.where(is_there, small, picture[place])
        mask[place] = np.where(is_there, kind, mask[place])
        rows, columns = np.nonzero(is_there)
        box = [left + columns.min(), top + rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        boxes.append((kind, [int(value) for value in box]))
    return picture, mask, boxes


def make_segmentation(out: Path, source: Path, counts: dict[str, int]) -> None:
    """Write images and masks of the splits, and classes.txt."""
    for place, (split, count) in enumerate(counts.items()):
        images, labels = garments(source, split)
        generator = np.random.default_rng([SEED, place])
        for kind in ("images", "masks"):
            (out / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture, mask, _ = canvas(images, labels, generator)
            Image.fromarray(picture).save(out / split / "images" / f"{number:05}.png")
            Image.fromarray(mask).save(out / split / "masks" / f"{number:05}.png")
    (out / "classes.txt").write_text("\n".join(KINDS) + "\n", encoding="utf-8")


def make_labels(out: Path, source: Path, counts: dict[str, int]) -> None:
    """Write images of the splits in colour, and a table of the kinds of garments on each."""
    for place, (split, count) in enumerate(counts.items()):
        images, labels = garments(source, split)
        generator = np.random.default_rng([SEED, 13, place])
        (out / split).mkdir(parents=True, exist_ok=True)
        lines = ["image,labels"]
        for number in range(count):
            picture, _, boxes = canvas(images, labels, generator)
            Image.fromarray(picture).convert("RGB").save(out / split / f"{number:05}.png")
            lines.append(f"{number:05}.png,{';'.join(sorted({KINDS[kind] for kind, _ in boxes}))}")
        (out / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_detection(out: Path, source: Path, counts: dict[str, int]) -> None:
    """Write images of the splits in colour, and COCO's annotations of the boxes of their garments."""
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    categories = [{"id": place, "name": name} for place, name in enumerate(KINDS) if place]
    for place, (split, count) in enumerate(counts.items()):
        images, labels = garments(source, split)
        generator = np.random.default_rng([SEED, 7, place])
        (out / split).mkdir(parents=True, exist_ok=True)
        listed: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for number in range(count):
            picture, _, boxes = canvas(images, labels, generator, 64, 30)
            Image.fromarray(picture).convert("RGB").save(out / split / f"{number:05}.png")
            listed.append({"id": number, "file_name": f"{number:05}.png", "width": 64, "height": 64})
            for kind, box in boxes:
                entry = {"id": len(annotations), "image_id": number, "category_id": kind, "bbox": box, "iscrowd": 0}
                annotations.append({**entry, "area": box[2] * box[3]})
        content = {"images": listed, "annotations": annotations, "categories": categories}
        (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def make_text(out: Path) -> None:
    """Write train.txt and val.txt, a tenth of the topics, from the topics of pydoc."""
    from pydoc_data.topics import topics

    out.mkdir(parents=True, exist_ok=True)
    texts = [topics[name] for name in sorted(topics)]
    parts = {"val": texts[5::10], "train": [text for place, text in enumerate(texts) if place % 10 != 5]}
    for split, chosen in parts.items():
        content = "\n".join(chosen).encode("ascii", errors="ignore").decode()
        (out / f"{split}.txt").write_text(content, encoding="utf-8")


def make_table(out: Path, counts: dict[str, int]) -> None:
    """Write train.csv and val.csv: y = 10 sin(pi a b) + 20 (c - 0.5)^2 + 10 d + 5 e + noise, and five idle columns."""
    out.mkdir(parents=True, exist_ok=True)
    for place, (split, count) in enumerate(counts.items()):
        generator = np.random.default_rng([SEED, place])
        x = generator.random((count, 10))
        y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        rows = np.column_stack([x, y + generator.normal(size=count)])
        header = ",".join([*(f"x{column}" for column in range(10)), "y"])
        np.savetxt(out / f"{split}.csv", rows, delimiter=",", header=header, comments="", fmt="%.6f")


def main(words: list[str]) -> None:
    """Make the data sets that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to write below")
    parser.add_argument("--fashion-mnist", type=Path, default=FASHION_MNIST, help="the folder of the idx files")
    parser.add_argument(
        "--only", choices=("segmentation", "labels", "detection", "text", "table"), help="make this one alone"
    )
    parser.add_argument("--train", type=int, default=2000, help="samples to train on")
    parser.add_argument("--val", type=int, default=500, help="samples to score")
    options = parser.parse_args(words)
    counts = {"train": options.train, "val": options.val}
    makers: dict[str, Callable[[Path], None]] = {
        "segmentation": lambda out: make_segmentation(out, options.fashion_mnist, counts),
        "labels": lambda out: make_labels(out, options.fashion_mnist, counts),
        "detection": lambda out: make_detection(out, options.fashion_mnist, counts),
        "text": make_text,
        "table": lambda out: make_table(out, counts),
    }
    for name, make in makers.items():
        if options.only in (None, name):
            make(options.out / name)


if __name__ == "__main__":
    main(sys.argv[1:])
