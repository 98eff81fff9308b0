"""Pascal VOC's folders: photographs with XML annotations of boxes, and masks with a palette."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.data import batches, open_image_source
from cleanai_ray.data.source import ImageSource
from cleanai_ray.data.voc import CLASSES
from cleanai_ray.errors import DataError

NAMES = ("2007_000001", "2007_000002")
SIZE = (80, 60)  # width and height of the files
OBJECT = """
  <object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>
    <bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>"""
ANNOTATION = """<annotation>
  <folder>VOC2012</folder><filename>{file}.jpg</filename><source><database>The VOC2007 Database</database></source>
  <size><width>80</width><height>60</height><depth>3</depth></size><segmented>1</segmented>{objects}
</annotation>"""
BOXES: dict[str, list[tuple[str, Sequence[Any], int]]] = {
    NAMES[0]: [("person", (1, 1, 80, 60), 0), ("cat", (11, 21, 30, 50), 0), ("dog", (5, 5, 9, 9), 1)],
    NAMES[1]: [],
}


def write(root: Path, boxes: dict[str, Any] = BOXES, masks: dict[str, np.ndarray] | None = None) -> Path:
    """Write two photographs (a temple and a flower), their annotations and masks, and the lists."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, photograph in zip(NAMES, ("china.jpg", "flower.jpg"), strict=True):
        Image.fromarray(load_sample_image(photograph)).resize(SIZE).save(root / "JPEGImages" / f"{name}.jpg")
        objects = "".join(OBJECT.format(name=of, box=box, difficult=hard) for of, box, hard in boxes[name])
        (root / "Annotations" / f"{name}.xml").write_text(ANNOTATION.format(file=name, objects=objects))
        mask = (masks or {}).get(name, np.zeros(SIZE[::-1]))
        drawn = Image.fromarray(mask.astype(np.uint8), mode="P")
        drawn.putpalette([value for colour in range(256) for value in (colour, 128, 255 - colour)])
        drawn.save(root / "SegmentationClass" / f"{name}.png")
    for kind in ("Main", "Segmentation"):
        for split, names in (("train", NAMES[:1]), ("val", NAMES[1:]), ("trainval", NAMES)):
            (root / "ImageSets" / kind / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text(f"{NAMES[0]}  1\n")
    return root


def opened(kind: str, root: Path, *, outputs: int = 21, shape: Sequence[int] = (3, 60, 80), **options: Any) -> Any:
    data = DataSection.model_validate({"name": f"voc_{kind}", "root": str(root), "options": options})
    model = {"factory": "a:b", "num_classes": outputs, "input_shape": list(shape)}
    source: ImageSource = open_image_source(data, ModelSection.model_validate(model), kind)
    return source


def test_boxes_are_those_of_the_annotations(tmp_path: Path) -> None:
    """VOC counts pixels from 1, both ends included: (11, 21, 30, 50) is 20 pixels wide and 30 high."""
    source = opened("detection", write(tmp_path))
    assert source.splits == ("train", "val", "trainval")
    assert [source.num_samples(split) for split in source.splits] == [1, 1, 2]
    ((images, targets),) = batches(source.dataset("trainval"), [0, 1], 2)
    with Image.open(tmp_path / "JPEGImages" / f"{NAMES[0]}.jpg") as photograph:
        pixels = torch.from_numpy(np.asarray(photograph).transpose(2, 0, 1).copy())
    assert torch.equal(images[0], pixels / 255.0)
    assert targets[0]["boxes"].tolist() == [[0.0, 0.0, 80.0, 60.0], [10.0, 20.0, 30.0, 50.0], [4.0, 4.0, 9.0, 9.0]]
    assert targets[0]["labels"].tolist() == [15, 8, 12]  # the numbers of persons, cats and dogs in VOC
    assert targets[0]["iscrowd"].tolist() == [0, 0, 1]  # the dog is difficult
    assert targets[1]["boxes"].shape == (0, 4)


def test_boxes_are_those_that_torchvisions_loader_reads(tmp_path: Path) -> None:
    from torchvision.datasets import VOCDetection

    write(tmp_path / "VOCdevkit" / "VOC2012")
    image, target = VOCDetection(str(tmp_path), year="2012", image_set="train")[0]
    listed = target["annotation"]["object"]
    sample, own = opened("detection", tmp_path).dataset("train")[0]
    assert [CLASSES.index(each["name"]) + 1 for each in listed] == own["labels"].tolist()
    assert [int(each["difficult"]) for each in listed] == own["iscrowd"].tolist()
    for each, box in zip(listed, own["boxes"].tolist(), strict=True):
        first = [float(each["bndbox"][key]) - 1 for key in ("xmin", "ymin")]
        assert box == [*first, float(each["bndbox"]["xmax"]), float(each["bndbox"]["ymax"])]
    assert np.array_equal(np.asarray(image), (sample * 255).round().byte().permute(1, 2, 0).numpy())


def test_boxes_are_scaled_with_the_photograph(tmp_path: Path) -> None:
    _, target = opened("detection", write(tmp_path), shape=(3, 120, 40)).dataset("train")[0]
    assert target["boxes"][1].tolist() == [5.0, 40.0, 15.0, 100.0]


def test_masks_are_the_values_of_the_palette(tmp_path: Path) -> None:
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[10:20, 30:50], mask[10, 30:50] = 20, 255
    source = opened("segmentation", write(tmp_path, masks={NAMES[0]: mask}))
    ((images, masks),) = batches(source.dataset("train"), [0], 1)
    assert torch.equal(masks[0], torch.from_numpy(mask).long())
    assert images.shape == (1, 3, 60, 80)
    assert images.min() >= -1.0
    assert images.max() > 0.5  # from -1 to 1
    assert source.class_names[20] == "tvmonitor"
    assert source.describe("val", 0).endswith(f"JPEGImages/{NAMES[1]}.jpg")


def test_classes_of_ones_own_are_listed(tmp_path: Path) -> None:
    boxes = {NAMES[0]: [("temple", (2.5, 1, 10.5, 60), 0)], NAMES[1]: [("flower", (0, 0, 80, 60), 0)]}
    write(tmp_path, boxes)
    (tmp_path / "classes.txt").write_text("flower\ntemple\n")
    source = opened("detection", tmp_path, outputs=3)
    assert source.class_names == ("background", "flower", "temple")
    _, target = source.dataset("train")[0]
    assert target["boxes"].tolist() == [[1.5, 0.0, 10.5, 60.0]]
    assert target["labels"].tolist() == [2]
    _, target = source.dataset("val")[0]
    assert target["boxes"].tolist() == [[0.0, 0.0, 80.0, 60.0]]  # a tool that counts from 0
    own = opened("detection", tmp_path, outputs=3, classes=["temple", "flower"])
    assert own.dataset("train")[0][1]["labels"].tolist() == [1]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no list of names; expected .*ImageSets/Main/train.txt"):
        opened("detection", tmp_path)
    write(tmp_path, {**BOXES, NAMES[1]: [("temple", (1, 1, 2, 2), 0)]})
    with pytest.raises(DataError, match=r"000002.xml' has an object 'temple'; allowed: aeroplane, .*classes.txt names"):
        opened("detection", tmp_path).dataset("val")
    with pytest.raises(DataError, match=r"model.num_classes is 20; allowed .*: 21"):
        opened("detection", tmp_path, outputs=20)
    with pytest.raises(DataError, match=r"data.options.classes is 'cat'; expected a list of names without"):
        opened("detection", tmp_path, classes="cat")
    annotation = tmp_path / "Annotations" / f"{NAMES[0]}.xml"
    for content in ("<annotation><object><name>cat</name></object></annotation>", "no XML", "<a></a>"):
        annotation.write_text(content)
        with pytest.raises(DataError, match=r"000001.xml' cannot be read as an annotation of VOC"):
            opened("detection", tmp_path).dataset("train")
    (tmp_path / "SegmentationClass" / f"{NAMES[1]}.png").unlink()
    with pytest.raises(DataError, match=r"000002.jpg' cannot be read"):
        opened("segmentation", tmp_path).dataset("val").batch([0])
    write(tmp_path / "VOCdevkit" / "VOC2007")
    write(tmp_path / "VOCdevkit" / "VOC2012")
    (tmp_path / "ImageSets").rename(tmp_path / "other")
    with pytest.raises(DataError, match=r"holds VOCdevkit/VOC2007, VOCdevkit/VOC2012; allowed: one of them"):
        opened("detection", tmp_path)
