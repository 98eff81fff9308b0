"""A model whose forward passes wait at a moment of a study, as a plug-in module of it: the moment lasts until the
process that reached it is killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cleanai_ray.config.sections import ModelSection
from cleanai_ray.models import build_model
from cleanai_ray.storage.whole_files import is_temporary


def whole(run: Path, pattern: str) -> list[Path]:
    """Return the files of a run directory that are written to their end; patterns match temporary ones as well."""
    return [path for path in run.glob(pattern) if not is_temporary(path.name)]


def unfinished(run: Path) -> set[str]:
    """Return the checkpoints of trials that are not done yet, once another one is."""
    done = [path.name.removesuffix(".json.done") for path in whole(run, "trials/*.done")]
    if not done:
        return set()
    found = {path.name: str(path.relative_to(run)) for path in whole(run, "cache/checkpoints/*.pt")}
    return {path for name, path in found.items() if not name.startswith(("dense", *done))}


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "calibration": lambda run: bool(whole(run, "cache/shards/calibrate/*.done")),
    "training": lambda run: bool(unfinished(run)),
}
"""Whether a run directory is in the middle of the calibration, or of the fine-tuning of a trial after the first."""


_TRACED = 2  # the driver traces the model on so many images, in training mode as well


class Held(nn.Module):
    """A ResNet-20 that goes no further at a moment of its study.

    Args:
        run: The run directory.
        moment: A file with one of `MOMENTS`; where there is no such file, the model never waits.
        network: The ResNet-20.
    """

    def __init__(self, run: Path, moment: Path, network: nn.Module) -> None:
        super().__init__()
        self._run, self._moment = run, moment
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, classes], unless the moment has come."""
        while len(images) > _TRACED and self._has_come():
            time.sleep(60)
        return self.network(images)

    def _has_come(self) -> bool:
        moment = self._moment.read_text() if self._moment.exists() else ""
        return bool(moment) and self.training == (moment == "training") and MOMENTS[moment](self._run)


def held(num_classes: int, run: str, moment: str) -> nn.Module:
    """Return a `Held` of the small study's images, the same at each call."""
    section = ModelSection(name="resnet20", num_classes=num_classes, input_shape=(1, 8, 8))
    torch.manual_seed(0)
    return Held(Path(run), Path(moment), build_model(section))
