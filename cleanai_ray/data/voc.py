"""Pascal VOC's folders (Everingham et al. 2010): images, XML files of boxes, masks of classes, and lists of names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.coco import BoxDataset, columns_of
from cleanai_ray.data.image_masks import MaskDataset
from cleanai_ray.data.pixels import Normalization
from cleanai_ray.data.source import ImageSource, Shape, find_root, per_channel
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The classes of VOC, in the order of the values in its masks, which begin at 1; 0 is the background."""

_SPLITS = ("train", "val", "trainval", "validation", "test")
_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


class VocSource(ImageSource):
    """Base of the two readers of VOC's folders.

    `data.root` holds JPEGImages/ and ImageSets/, or VOCdevkit/VOC2012/ (or another year, if there is one alone) with
    them. The splits are the lists in ImageSets/: train, val, trainval, test. The classes are those of VOC unless
    classes.txt, one a line without the background, or `data.options.classes` names others.
    """

    channels = (1, 3)
    option_names = ("classes",)
    lists: ClassVar[str]
    """The folder in ImageSets/ whose lists are read."""
    targets: ClassVar[str]
    """The folder of the targets."""

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        expected = (
            f"a folder with JPEGImages/, {self.targets}/ and the lists ImageSets/{self.lists}/train.txt and val.txt, "
            "or VOCdevkit/VOC2012 with them"
        )
        self._root = _own_folder(find_root(data.root, (), expected))
        self.splits = tuple(split for split in _SPLITS if self._list(split).is_file())
        if not self.splits:
            raise DataError(f"data.root '{data.root}' holds no list of names; expected {expected}")
        self.class_names = ("background", *_class_names(data, self._root))
        self.num_classes = len(self.class_names)
        self._names: dict[str, list[str]] = {}

    def _list(self, split: str) -> Path:
        return self._root / "ImageSets" / self.lists / f"{split}.txt"

    def _named(self, split: str) -> list[str]:
        """Return the names of a split's images, without their endings."""
        name = self.resolve(split)
        if name not in self._names:
            # A second column, in the lists of one class, says whether an image has it.
            lines = self._list(name).read_text(encoding="utf-8").splitlines()
            self._names[name] = [line.split()[0] for line in lines if line.strip()]
            if not self._names[name]:
                raise DataError(f"'{self._list(name)}' is empty; needed: a name of an image in each line")
        return self._names[name]

    def _image(self, name: str) -> Path:
        """Return the file of an image; where there is none, the one that VOC would have."""
        places = [self._root / "JPEGImages" / f"{name}{ending}" for ending in _ENDINGS]
        return next((place for place in places if place.is_file()), places[0])

    def num_samples(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self._named(split))

    def describe(self, split: str, index: int) -> str:
        """Return the path of an image."""
        return str(self._image(self._named(split)[index]))


@DATASETS.register("voc_detection")
class VocDetection(VocSource):
    """Boxes in Annotations/NAME.xml of the images in JPEGImages/ that ImageSets/Main/SPLIT.txt lists.

    Boxes, whose first pixel is 1 in VOC, become distances from the image's corner. Objects that are marked difficult
    are not learned, and detections that match one are not counted, as in VOC's own evaluation. They have
    `iscrowd`, whose measure of a match, the share of the detection that lies in the box, is the looser one.
    """

    tasks = ("detection",)
    lists = "Main"
    targets = "Annotations"

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        self._opened: dict[str, BoxDataset] = {}

    def dataset(self, split: str, *, augment: bool = False) -> BoxDataset:
        """Return a split; there is no training transform."""
        name = self.resolve(split)
        if name not in self._opened:
            names = self._named(name)
            found = columns_of(self._objects(self._root / "Annotations" / f"{each}.xml") for each in names)
            self._opened[name] = BoxDataset([self._image(each) for each in names], *found, self.input_shape)
        return self._opened[name]

    def _objects(self, file: Path) -> list[tuple[list[float], int, bool]]:
        """Return (x, y, width, height), the class, and whether it is difficult, of each object in an annotation."""
        from torchvision.datasets import VOCDetection  # takes a second to import

        try:
            content = VOCDetection.parse_voc_xml(ElementTree.parse(file).getroot())
            listed = content["annotation"].get("object", [])
            return [found for each in listed if (found := self._object(each, file)) is not None]
        except (OSError, ElementTree.ParseError, KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise DataError(f"'{file}' cannot be read as an annotation of VOC: {reason}") from error

    def _object(self, content: dict[str, Any], file: Path) -> tuple[list[float], int, bool] | None:
        name, corners = content["name"], content["bndbox"]
        if name not in self.class_names[1:]:
            raise DataError(
                f"'{file}' has an object '{name}'; allowed: {', '.join(self.class_names[1:])} (data.options.classes "
                "or classes.txt names others)"
            )
        left, top = (max(float(corners[key]) - 1.0, 0.0) for key in ("xmin", "ymin"))
        width, height = float(corners["xmax"]) - left, float(corners["ymax"]) - top
        if min(width, height) <= 0:
            return None
        return [left, top, width, height], self.class_names.index(name), bool(int(content.get("difficult", 0)))


@DATASETS.register("voc_segmentation")
class VocSegmentation(VocSource):
    """Masks in SegmentationClass/NAME.png of the images that ImageSets/Segmentation/SPLIT.txt lists; 255 is ignored."""

    tasks = ("segmentation",)
    transform_names = ("mean", "std")
    lists = "Segmentation"
    targets = "SegmentationClass"

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        usual = (0.5,) * input_shape[0]
        mean, std = (per_channel(data, name, usual) for name in ("mean", "std"))
        self._normalise = Normalization(mean, std)

    def dataset(self, split: str, *, augment: bool = False) -> MaskDataset:
        """Return a split."""
        masks = self._root / "SegmentationClass"
        files = [(self._image(name), masks / f"{name}.png") for name in self._named(split)]
        return MaskDataset(files, self.input_shape, self._normalise, self.num_classes, augment=augment)


def _own_folder(root: Path) -> Path:
    """Return the folder with the images: the root itself, or VOCdevkit's of one year, which VOC's archives make."""
    if (root / "ImageSets").is_dir():
        return root
    below = [*root.glob("VOCdevkit/VOC*"), *root.glob("VOC*"), *root.glob("TrainVal/VOCdevkit/VOC*")]
    found = sorted(place for place in below if (place / "ImageSets").is_dir())
    if len(found) > 1:
        years = ", ".join(str(place.relative_to(root)) for place in found)
        raise DataError(f"data.root '{root}' holds {years}; allowed: one of them")
    return found[0] if found else root


def _class_names(data: DataSection, root: Path) -> tuple[str, ...]:
    given: Any = data.options.get("classes")
    if given is None and (root / "classes.txt").is_file():
        lines = (root / "classes.txt").read_text(encoding="utf-8").splitlines()
        given = [line.strip() for line in lines if line.strip()]
    if given is None:
        return CLASSES
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise DataError(f"data.options.classes is {given!r}; expected a list of names without the background")
    return tuple(given)
