"""A study opened in one process: its data, the roles of the samples, the dense architecture, the device."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.digests import digest
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.data import (
    BatchOptions,
    ImageDataset,
    ImageSource,
    KeptImages,
    SampleRoles,
    Share,
    UnreadableSamples,
    assign_roles,
    batches,
    choose_decoder,
    kept_images,
    numbered_batches,
    open_image_source,
    require_one_each,
)
from cleanai_ray.data.loader_processes import loader_processes
from cleanai_ray.importance.base import create_method
from cleanai_ray.models import build_model, example_input, ignored_layers
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.stages.numerics import apply_numerics
from cleanai_ray.storage.image_schemas import of_other_split
from cleanai_ray.tasks.base import Task
from cleanai_ray.tasks.own import task_with

EpochBatches = Callable[..., Iterator[tuple[Tensor, Any]]]
"""(epoch, batches to leave out = 0) -> batches."""

_ROLES = ("calibration", "training", "validation", "evaluation", "selection")


@dataclass(frozen=True, kw_only=True, eq=False)
class Workspace:
    """A study opened in this process; every stage reads it.

    Attributes:
        study: The study, with one draw of the calibration samples.
        source: Its data set.
        roles: The samples of each role.
        device: Where this process computes.
    """

    study: Study
    source: ImageSource
    roles: SampleRoles
    device: torch.device

    @cached_property
    def _kept(self) -> dict[str, KeptImages | None]:
        """The decoded images that this workspace has opened, by role."""
        return {}

    def _kept_images(self, role: str, dataset: ImageDataset) -> KeptImages | None:
        """Return where the decoded images of a role are kept.

        Those of validation are kept if they take at most a quarter of the room: there may be many of them, and they are
        read once an epoch at most.
        """
        cache, shape = self.study.data.cache, self.study.model.input_shape
        if cache is None or role == "training":
            return None
        if role == "validation" and len(self.roles.validation) * math.prod(shape) > cache.max_bytes // 4:
            return None
        known = self._kept.get(role)
        if role not in self._kept or (known is not None and known.images.is_gone):
            split = self.source.location, getattr(self.roles, f"{role}_split")
            decoder = choose_decoder(self.study.data.decoder, dataset, self.device)
            # Images alone are kept, whose shape has three numbers.
            self._kept[role] = kept_images(cache, split, dataset, cast("tuple[int, int, int]", shape), decoder)
        return self._kept[role]

    @cached_property
    def task(self) -> Task:
        """The task of the study."""
        own = self.study.task
        return task_with(own.name, own.loss, own.metric)

    @cached_property
    def unreadable(self) -> UnreadableSamples:
        """The samples that this workspace could not read."""
        return UnreadableSamples(self.study.data.skip_unreadable)

    def batches(
        self,
        role: str,
        *,
        positions: np.ndarray | None = None,
        batch_size: int | None = None,
        shuffle_seed: int | None = None,
        share: Share = (0, 1),
        trains: bool = False,
        first_batch: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the samples of a role: `calibration`, `training`, `validation` or `evaluation`.

        Samples that cannot be read are left out, up to the number in `data.skip_unreadable`. If `trains`, other samples
        take their place, images are augmented, and a smaller last batch is dropped; otherwise, decoded images are kept
        on this node as `data.cache` says, and batches are handed on in smaller pieces once memory ran out.
        """
        assert role in _ROLES
        indices = getattr(self.roles, role)
        dataset = self.source.opened(getattr(self.roles, f"{role}_split"), augment=trains)
        data = self.study.data
        found = batches(
            dataset,
            indices if positions is None else indices[positions],
            batch_size or data.batch_size,
            BatchOptions(
                num_workers=loader_processes(data.num_workers, self.device),
                device=self.device,
                shuffle_seed=shuffle_seed,
                drop_last=trains,
                fill=trains,
                first_batch=first_batch,
            ),
            share=share,
            unreadable=self.unreadable,
            kept=None if trains else self._kept_images(role, dataset),
        )
        return found if trains else process_limit.split(found)

    def scored_batches(self, positions: np.ndarray | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterate over the evaluation samples, or over those at some positions: indices [N] on the CPU, images, labels.

        Samples that cannot be read are left out, up to the number in `data.skip_unreadable`.
        """
        return self._numbered_batches("evaluation", positions)

    def selection_batches(self, positions: np.ndarray | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterate likewise over the samples of another split that choose; they are numbered by `of_other_split`."""
        for numbers, images, labels in self._numbered_batches("selection", positions):
            yield torch.from_numpy(of_other_split(numbers.numpy())), images, labels

    def _numbered_batches(self, role: str, positions: np.ndarray | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        indices, data = getattr(self.roles, role), self.study.data
        dataset = self.source.opened(getattr(self.roles, f"{role}_split"))
        found = numbered_batches(
            dataset,
            indices if positions is None else indices[positions],
            data.batch_size,
            BatchOptions(num_workers=loader_processes(data.num_workers, self.device), device=self.device),
            unreadable=self.unreadable,
            kept=self._kept_images(role, dataset),
        )
        whole = ((images, {"numbers": numbers, "labels": labels}) for numbers, images, labels in found)
        for images, rest in process_limit.split(whole):
            yield rest["numbers"], images, rest["labels"]

    def training_batches(
        self,
        seed: int,
        batch_size: int | None,
        share: Share = (0, 1),
        *,
        role: str = "training",
        positions: np.ndarray | None = None,
    ) -> tuple[EpochBatches, int]:
        """Return a function from an epoch (and how many batches to leave out) to its batches, and their number.

        Args:
            seed: Decides order and augmentation, together with the epoch.
            batch_size: Images per step over all processes; None for `data.batch_size`.
            share: Rank of this process, and the number of processes; each gets its share of every batch.
            role: The role whose samples to train on.
            positions: Positions of the samples to use among those of the role; all by default.

        Raises:
            DataError: When a batch has fewer images than there are processes.
        """
        available = len(getattr(self.roles, role) if positions is None else positions)
        size = min(batch_size or self.study.data.batch_size, available)
        require_one_each(share, size, role)
        steps = available // size

        def epoch_batches(epoch: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            return self.batches(
                role,
                positions=positions,
                batch_size=size,
                shuffle_seed=int(digest([seed, epoch])[:8], 16),
                share=share,
                trains=True,
                first_batch=done,
            )

        return epoch_batches, steps

    def validation_batches(
        self, share: Share, *, role: str = "validation", positions: np.ndarray | None = None
    ) -> Callable[[], Iterator[tuple[Tensor, Any]]]:
        """Return a function that returns the batches which decide on the best epoch; arguments as above.

        Raises:
            DataError: When a batch has fewer images than there are several processes.
        """
        available = len(getattr(self.roles, role) if positions is None else positions)
        if share[1] > 1:
            require_one_each(share, min(self.study.data.batch_size, available), "validation")
        return lambda: self.batches(role, positions=positions, share=share)

    def shards(self) -> list[np.ndarray]:
        """Return the positions of each calibration shard among the calibration samples."""
        positions = self.in_reading_order(np.arange(len(self.roles.calibration)))
        size = self.study.data.calibration.shard_size
        return [positions[start : start + size] for start in range(0, len(positions), size)]

    def in_reading_order(self, positions: np.ndarray) -> np.ndarray:
        """Return positions among the calibration samples, ordered so that samples stored together are neighbours."""
        indices = self.roles.calibration[positions]
        return positions[self.source.reading_order(self.roles.calibration_split, indices)]

    def example_input(self) -> Tensor:
        """Return one input [1, C, H, W], or of the shape that the task has, on the device."""
        return example_input(self.study.model, task=self.task).to(self.device)

    def ignored_layers(self) -> tuple[str, ...]:
        """Return the names of the modules that keep their width whatever the study says."""
        own = ignored_layers(self.study.model)
        if self.study.task.is_classification:
            return own
        return tuple(dict.fromkeys([*own, *self.task.ignored_layers(self._built())]))

    def _built(self) -> nn.Module:
        """Return the dense model with random weights."""
        return build_model(self.study.model.model_copy(update={"weights": None, "train": None}), task=self.task)

    def dense_model(self, weights: bytes) -> nn.Module:
        """Return the dense model with the given weights (a safetensors file's content), on the device.

        It is the network of the task, by which it is pruned and repaired; `task.restored` gives the model itself.
        """
        model = self._built()
        model.load_state_dict(safetensors.torch.load(weights), strict=True)
        return self.task.network(model.to(self.device).eval())


def open_workspace(study_json: str, device: str, draw: CalibrationDraw | None = None) -> Workspace:
    """Open a study, or return it if this process has it open; all draws share one data set.

    The numerical settings of this process become those of the study.

    Args:
        study_json: The study, as `Study.model_dump_json` writes it.
        device: Where this process computes, for instance `cuda:0`.
        draw: One of the study's draws of the calibration samples; the first by default.

    Raises:
        DataError: When the data set is missing or does not fit the study.
    """
    study, source, opened = _open(study_json)
    apply_numerics(study.numerics)
    draw = draw or study.draws()[0]
    if (draw, device) not in opened:
        trains = study.model.train is not None or (study.fine_tunes and study.finetune.data == "training")
        roles = assign_roles(study.data, study.evaluation, source, draw, trains=trains)
        own = study.of_draw(draw)
        opened[draw, device] = Workspace(study=own, source=source, roles=roles, device=torch.device(device))
    return opened[draw, device]


@lru_cache(maxsize=2)  # of a study of several draws, the whole and the one of a draw
def _open(study_json: str) -> tuple[Study, ImageSource, dict[tuple[CalibrationDraw, str], Workspace]]:
    study = parse_study(json.loads(study_json))
    return study, open_image_source(study.data, study.model, study.task.name), {}


def methods_need(study: Study, attribute: str) -> bool:
    """Return whether any method of the study, with its options, has an attribute set: `needs_gradients`, say."""
    options = study.sweep.method_options
    return any(getattr(create_method(name, options.get(name)), attribute) for name in study.sweep.methods)
