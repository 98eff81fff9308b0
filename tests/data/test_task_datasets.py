"""Data sets of tasks other than classification: masks, texts, tables, boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.data import batches, open_image_source
from cleanai_ray.data.source import ImageSource
from cleanai_ray.data.text_files import num_pieces
from cleanai_ray.errors import DataError


def opened(name: str, root: Path, task: str, shape: list[int], outputs: int, **options: Any) -> ImageSource:
    data = DataSection.model_validate({"name": name, "root": str(root), "options": options})
    model = {"factory": "a:b", "num_classes": outputs, "input_shape": shape}
    return open_image_source(data, ModelSection.model_validate(model), task)


def write_pair(root: Path, name: str, mask: Any, size: tuple[int, int] = (4, 4)) -> np.ndarray:
    for kind in ("images", "masks"):
        (root / "train" / kind).mkdir(parents=True, exist_ok=True)
    image = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)
    Image.fromarray(image).save(root / "train" / "images" / f"{name}.png")
    Image.fromarray(np.asarray(mask, np.uint8)).save(root / "train" / "masks" / f"{name}.png")
    return image


class TestMasks:
    MASK = ((0, 0, 1, 1), (0, 0, 1, 1), (2, 2, 255, 255), (2, 2, 255, 255))

    def source(self, root: Path, shape: list[int] | None = None) -> ImageSource:
        return opened("image_masks", root, "segmentation", shape or [1, 4, 4], 3, classes=["a", "b", "c"])

    def test_pixels_and_classes_are_those_of_the_files(self, tmp_path: Path) -> None:
        image = write_pair(tmp_path, "x", self.MASK)
        ((images, masks),) = batches(self.source(tmp_path).dataset("train"), [0], 1)
        expected = (torch.from_numpy(image).float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(images[0, 0], expected)
        assert masks[0].tolist() == [list(row) for row in self.MASK]
        assert masks.dtype == torch.int64

    def test_a_mask_is_resized_to_the_nearest_class(self, tmp_path: Path) -> None:
        write_pair(tmp_path, "x", self.MASK)
        _, masks = self.source(tmp_path, [1, 2, 2]).dataset("train").batch([0])
        assert masks[0].tolist() == [[0, 1], [2, 255]]

    def test_image_and_mask_are_mirrored_together(self, tmp_path: Path) -> None:
        write_pair(tmp_path, "x", self.MASK)
        source = self.source(tmp_path)
        plain = source.dataset("train").batch([0])
        found = [source.dataset("train", augment=True).batch([0], seed) for seed in range(12)]
        is_flipped = [not torch.equal(images, plain[0]) for images, _ in found]
        assert set(is_flipped) == {True, False}
        for flipped, (images, masks) in zip(is_flipped, found, strict=True):
            assert torch.equal(images.flip(-1) if flipped else images, plain[0])
            assert torch.equal(masks.flip(-1) if flipped else masks, plain[1])

    def test_what_is_wrong_is_named(self, tmp_path: Path) -> None:
        write_pair(tmp_path, "x", [[3] * 4] * 4)
        with pytest.raises(DataError, match=r"holds 3; allowed: 0 to 2"):
            self.source(tmp_path).dataset("train").batch([0])
        write_pair(tmp_path, "y", [[0] * 4] * 3)
        with pytest.raises(DataError, match=r"is 4 x 4 and its mask 4 x 3; allowed: the same size"):
            self.source(tmp_path).dataset("train").batch([1])
        (tmp_path / "train" / "masks" / "x.png").unlink()
        with pytest.raises(DataError, match=r"has no mask; expected '.*masks/x.png'"):
            self.source(tmp_path).num_samples("train")
        with pytest.raises(DataError, match=r"data.options.classes is absent; expected a list of names"):
            opened("image_masks", tmp_path, "segmentation", [1, 4, 4], 3)


class TestTexts:
    def test_every_token_is_followed_by_the_next(self, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "a.txt").write_text("hello")
        (tmp_path / "train" / "b.txt").write_text("world!")
        source = opened("text_files", tmp_path, "language_modelling", [4], 256)
        assert source.num_samples("train") == 2  # 12 tokens with the line break; the last of all is only followed to
        tokens, following = source.dataset("train").batch([0, 1])
        assert [bytes(row.tolist()) for row in tokens] == [b"hell", b"o\nwo"]
        assert [bytes(row.tolist()) for row in following] == [b"ello", b"\nwor"]

    @pytest.mark.parametrize(("tokens", "pieces"), [(0, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
    def test_the_number_of_pieces(self, tokens: int, pieces: int) -> None:
        assert num_pieces(tokens, 4) == pieces

    def test_a_text_that_is_too_short_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "val.txt").write_text("ab")
        source = opened("text_files", tmp_path, "language_modelling", [4], 256)
        with pytest.raises(DataError, match=r"has 2 tokens; needed: more than 4"):
            source.num_samples("val")

    def test_a_tokenizer_decides_on_the_vocabulary(self, tmp_path: Path) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        words = {"a": 0, "b": 1, "c": 2}
        own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
        own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        own.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "val.txt").write_text("a b c b a")
        options = {"tokenizer": str(tmp_path / "tokenizer.json")}
        source = opened("text_files", tmp_path, "language_modelling", [2], 3, **options)
        assert source.dataset("val").batch([0, 1])[0].tolist() == [[0, 1], [2, 1]]
        with pytest.raises(DataError, match=r"model.num_classes is 4; allowed .* 3"):
            opened("text_files", tmp_path, "language_modelling", [2], 4, **options)


class TestTables:
    def test_columns_are_standardised_by_those_of_training(self, tmp_path: Path) -> None:
        (tmp_path / "train.csv").write_text("a,y,b\n0,10,5\n2,30,5\n")
        (tmp_path / "val.csv").write_text("y,a,b\n20,3,5\n")
        source = opened("table", tmp_path, "regression", [2], 1, targets=["y"])
        inputs, targets = source.dataset("val").batch([0])
        assert inputs.tolist() == [[2.0, 0.0]]  # a has mean 1 and standard deviation 1; b is constant
        assert targets.tolist() == [[0.0]]
        assert source.dataset("train").batch([1, 0])[1].tolist() == [[1.0], [-1.0]]

    def test_a_column_that_is_constant_in_training_keeps_its_units(self, tmp_path: Path) -> None:
        (tmp_path / "train.csv").write_text("rare,y\n0.1,1\n0.1,3\n0.1,3\n")
        (tmp_path / "val.csv").write_text("rare,y\n1.1,2\n")
        source = opened("table", tmp_path, "regression", [1], 1, targets=["y"])
        assert source.dataset("val").batch([0])[0].flatten().tolist() == pytest.approx([1.0])

    def test_what_is_wrong_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "train.csv").write_text("a,y\n0,1\n2,3\n")
        with pytest.raises(DataError, match=r"data.options.targets is \['z'\]; allowed: a list of columns"):
            opened("table", tmp_path, "regression", [1], 1, targets=["z"])
        with pytest.raises(DataError, match=r"model.input_shape is \[4\]; allowed .* \[1\]"):
            opened("table", tmp_path, "regression", [4], 1, targets=["y"])
        (tmp_path / "train.csv").write_text("a,y\n0,1\n,3\n")
        with pytest.raises(DataError, match=r"column 'a' of .* lacks a value"):
            opened("table", tmp_path, "regression", [1], 1, targets=["y"])


class TestBoxes:
    def write(self, root: Path, **changes: Any) -> ImageSource:
        (root / "annotations").mkdir(exist_ok=True)
        (root / "train").mkdir(exist_ok=True)
        Image.fromarray(np.full((10, 20, 3), 255, np.uint8)).save(root / "train" / "x.png")
        box = {"image_id": 5, "category_id": 30, "bbox": [2, 1, 4, 3], "iscrowd": 0, **changes}
        content = {
            "images": [{"id": 5, "file_name": "x.png"}],
            "annotations": [box, {**box, "category_id": 30, "iscrowd": 1}],
            "categories": [{"id": 30, "name": "dog"}, {"id": 7, "name": "cat"}],
        }
        (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
        return opened("coco", root, "detection", [3, 20, 20], 3)

    def test_boxes_are_scaled_with_their_image(self, tmp_path: Path) -> None:
        source = self.write(tmp_path)
        assert source.class_names == ("background", "cat", "dog")
        ((images, targets),) = batches(source.dataset("train"), [0], 1)
        assert images.shape == (1, 3, 20, 20)
        assert float(images.min()) == 1.0
        assert targets[0]["boxes"].tolist() == [[2.0, 2.0, 6.0, 8.0]] * 2  # twice as high: y from 1 to 4 becomes 2 to 8
        assert targets[0]["labels"].tolist() == [2, 2]
        assert targets[0]["iscrowd"].tolist() == [0, 1]

    def test_an_annotation_of_an_unknown_image_is_refused(self, tmp_path: Path) -> None:
        source = self.write(tmp_path, image_id=6)
        with pytest.raises(DataError, match=r"an annotation of image 6 and category 30; allowed: those that it lists"):
            source.num_samples("train")


def test_batches_move_targets_of_every_form(tmp_path: Path) -> None:
    """A list of dicts, as of boxes, is moved entry by entry."""
    source = TestBoxes().write(tmp_path)
    ((_, targets),) = batches(source.dataset("train"), [0], 1)
    assert isinstance(targets, list)
    assert set(targets[0]) == {"boxes", "labels", "iscrowd"}
