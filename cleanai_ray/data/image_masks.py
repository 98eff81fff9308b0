"""Pairs of an image and a mask of classes, for segmentation, in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.augment import Indices, random_flip, sample_seeds
from cleanai_ray.data.pixels import Normalization
from cleanai_ray.data.source import ImageSource, Shape, find_root, per_channel
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS

_SPLITS = ("train", "val", "validation", "test")
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_IGNORED = 255
_KEPT_BYTES = 2**28
"""Decoded samples that a process keeps of one split."""
_EXPECTED = (
    "a folder with train/ and val/ or test/, each with images/ and masks/ whose files have the same names, and the "
    "names of the classes in classes.txt, one a line, or in data.options.classes"
)


class MaskDataset(Dataset[tuple[Tensor, Tensor]]):
    """One split: files, decoded one at a time and kept as bytes.

    Args:
        files: Paths of image and mask of each sample.
        input_shape: Channels, height and width to deliver; another size is reached by bilinear interpolation, and in
            masks by the nearest pixel.
        normalise: The conversion of pixels to network inputs.
        num_classes: Classes that masks may hold, besides 255, which is ignored.
        augment: Mirror half of the samples left to right.
    """

    def __init__(
        self,
        files: list[tuple[Path, Path]],
        input_shape: Shape,
        normalise: Normalization,
        num_classes: int,
        *,
        augment: bool,
    ) -> None:
        self._files = files
        self._input_shape = input_shape
        self._normalise = normalise
        self._num_classes = num_classes
        self._augment = augment
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._most_kept = _KEPT_BYTES // int(np.prod([input_shape[0] + 1, *input_shape[1:]]))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, masks = self.batch([index])
        return images[0], masks[0]

    def batch(self, indices: Indices, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return images float32 [N, C, H, W] and masks int64 [N, H, W] of several samples.

        Args:
            indices: The samples.
            seed: Together with a sample's index, it determines the training transform of the sample.
        """
        rows = np.asarray(indices, dtype=np.int64)
        pairs = [self._sample(int(row)) for row in rows]
        images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        if self._augment:
            seeds = sample_seeds(seed, rows)
            images, masks = random_flip(images, seeds), random_flip(masks[:, None], seeds)[:, 0]
        return self._normalise(images), masks.long()

    def _sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index not in self._kept:
            sample = self._decode(*self._files[index])
            if len(self._kept) >= self._most_kept:
                return sample
            self._kept[index] = sample
        return self._kept[index]

    def _decode(self, image_file: Path, mask_file: Path) -> tuple[np.ndarray, np.ndarray]:
        channels, height, width = self._input_shape
        try:
            with Image.open(image_file) as image, Image.open(mask_file) as mask:
                if image.size != mask.size:
                    raise DataError(
                        f"sample '{image_file}' is {_size(image)} and its mask {_size(mask)}; allowed: the same size"
                    )
                pixels = np.asarray(image.convert("L" if channels == 1 else "RGB").resize((width, height), 2))
                classes = np.asarray(_single(mask, mask_file).resize((width, height), 0), dtype=np.uint8)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"sample '{image_file}' cannot be read: {' '.join(str(error).split())}") from error
        strange = classes[(classes >= self._num_classes) & (classes != _IGNORED)]
        if strange.size:
            raise DataError(
                f"mask '{mask_file}' holds {strange[0]}; allowed: 0 to {self._num_classes - 1}, the number of a class, "
                f"and {_IGNORED}, which is ignored"
            )
        return (pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)).copy(), classes


def _size(image: Image.Image) -> str:
    return f"{image.size[0]} x {image.size[1]}"


def _single(mask: Image.Image, file: Path) -> Image.Image:
    if mask.mode not in ("L", "P"):
        raise DataError(f"mask '{file}' has mode {mask.mode}; allowed: 8 bits a pixel, grey or with a palette")
    return mask


@DATASETS.register("image_masks")
class ImageMasks(ImageSource):
    """Image-mask pairs below train/ and val/ or test/, in images/ and masks/: a class for every pixel, 255 for none."""

    tasks = ("segmentation",)
    channels = (1, 3)
    option_names = ("classes",)
    transform_names = ("mean", "std")

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        self._root = find_root(data.root, (), _EXPECTED)
        self.class_names = _class_names(data, self._root)
        self.num_classes = len(self.class_names)
        self.splits = tuple(split for split in _SPLITS if (self._root / split / "images").is_dir())
        if not self.splits:
            raise DataError(f"data.root '{data.root}' holds no split; expected {_EXPECTED}")
        usual = (0.5,) * input_shape[0]
        mean, std = (per_channel(data, name, usual) for name in ("mean", "std"))
        self._normalise = Normalization(mean, std)
        self._files: dict[str, list[tuple[Path, Path]]] = {}

    def _listed(self, split: str) -> list[tuple[Path, Path]]:
        name = self.resolve(split)
        if name not in self._files:
            folder = self._root / name
            masks = {path.stem: path for path in sorted((folder / "masks").glob("*")) if path.suffix == ".png"}
            images = sorted(path for path in (folder / "images").iterdir() if path.suffix.lower() in _ENDINGS)
            alone = next((path for path in images if path.stem not in masks), None)
            if alone is not None:
                raise DataError(f"image '{alone}' has no mask; expected '{folder / 'masks' / alone.stem}.png'")
            if not images:
                raise DataError(f"'{folder / 'images'}' holds no image; expected {_EXPECTED}")
            self._files[name] = [(path, masks[path.stem]) for path in images]
        return self._files[name]

    def num_samples(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self._listed(split))

    def dataset(self, split: str, *, augment: bool = False) -> MaskDataset:
        """Return a split."""
        files = self._listed(split)
        return MaskDataset(files, self.input_shape, self._normalise, self.num_classes, augment=augment)

    def describe(self, split: str, index: int) -> str:
        """Return the path of an image."""
        return str(self._listed(split)[index][0])


def _class_names(data: DataSection, root: Path) -> tuple[str, ...]:
    given = data.options.get("classes")
    if given is None and (root / "classes.txt").is_file():
        given = [line.strip() for line in (root / "classes.txt").read_text(encoding="utf-8").splitlines()]
        given = [line for line in given if line]
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        found = "absent" if given is None else repr(given)
        raise DataError(f"data.options.classes is {found}; expected a list of names, or classes.txt in '{root}'")
    return tuple(given)
