"""First and second moments of what consumers read, which can be merged, at positions drawn by sample and layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError
from cleanai_ray.nn.batches import fast_batches, fast_layout
from cleanai_ray.nn.consumers import observing
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.repair.images import Batch, device_of, run, walk
from cleanai_ray.repair.sampling import POSITIONS_PER_SAMPLE, PositionSampler
from cleanai_ray.statistics.tensor_file import pack, unpack

_FORMAT = "cleanai-moments/3"
_FIELDS = ("count", "mean", "scatter")
_ROWS_AT_ONCE = 16384
_ROWS_OF_A_MERGE = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerMoments:
    """Moments of the positions x [C] that one consumer read, about their mean; float64, on the CPU.

    Deviations from the mean are squared, so that a variance is never negative, and one that is small next to the mean
    keeps its digits. Differences of large sums (E[x^2] - mu^2) have neither property.

    Attributes:
        count: Positions, as a tensor of shape [].
        mean: Mean mu of x, [C].
        scatter: Sum of (x - mu) (x - mu)^T, [C, C].
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(rows: Tensor) -> LayerMoments:
        """Return the moments of rows x [M, C], on their device."""
        rows = rows.double()
        mean = rows.mean(dim=0)
        centred = rows - mean
        return LayerMoments(
            count=torch.tensor(len(rows), dtype=torch.float64), mean=mean, scatter=_symmetric(centred.T @ centred)
        )

    @property
    def covariance(self) -> Tensor:
        """Population covariance S, [C, C]."""
        return self.scatter / self.count

    def __add__(self, other: LayerMoments) -> LayerMoments:
        """Return the moments of both sets of positions (Chan, Golub and LeVeque 1979). Sides can be exchanged."""
        count, mean, step = _merged_means(self.count, other.count, self.mean, other.mean)
        return LayerMoments(count=count, mean=mean, scatter=(self.scatter + other.scatter).addr_(step, step))


def _merged_means(
    count: Tensor, other_count: Tensor, mean: Tensor, other_mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the count and the mean of two sets, and the vector whose outer product merging adds to the scatter."""
    total = count + other_count
    step = (mean - other_mean) * (count * other_count / total).sqrt()
    return total, (count * mean + other_count * other_mean) / total, step


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ConsumerMoments:
    """Moments of several consumers. Adding the moments of two sets of samples gives those of their union.

    Attributes:
        layers: Moments by module name.
    """

    layers: Mapping[str, LayerMoments]

    def __getitem__(self, name: str) -> LayerMoments:
        return self.layers[name]

    def __contains__(self, name: object) -> bool:
        return name in self.layers

    def __add__(self, other: ConsumerMoments) -> ConsumerMoments:
        """Merge with the moments of other samples of the same model.

        Raises:
            CalibrationError: When the two come from different layers.
        """
        if not isinstance(other, ConsumerMoments):
            return NotImplemented
        difference = set(self.layers) ^ set(other.layers)
        if difference:
            raise CalibrationError(f"moments cannot be merged: only one side has layer '{min(difference)}'")
        for name, value in self.layers.items():
            widths = value.mean.numel(), other[name].mean.numel()
            if widths[0] != widths[1]:
                raise CalibrationError(
                    f"moments cannot be merged: layer '{name}' reads {widths[0]} and {widths[1]} channels"
                )
        return ConsumerMoments(layers={name: value + other[name] for name, value in self.layers.items()})

    def to_bytes(self) -> bytes:
        """Serialise without loss as a safetensors file, with the upper triangles of the symmetric matrices."""
        tensors = {f"{name}/{field}": getattr(value, field) for name, value in self.layers.items() for field in _FIELDS}
        for name, value in self.layers.items():
            rows, columns = torch.triu_indices(*value.scatter.shape)
            tensors[f"{name}/scatter"] = value.scatter[rows, columns]
        return pack(tensors, {"format": _FORMAT, "layers": list(self.layers)})

    @staticmethod
    def from_bytes(content: bytes) -> ConsumerMoments:
        """Restore what `to_bytes` wrote.

        Raises:
            ArtifactError: When the bytes are something else.
        """
        tensors, header = unpack(content, "consumer moments", _FORMAT)
        layers = {}
        for name in header["layers"]:
            values = {field: tensors[f"{name}/{field}"] for field in _FIELDS}
            size = len(values["mean"])
            rows, columns = torch.triu_indices(size, size)
            scatter = values["scatter"].new_zeros(size, size)
            scatter[rows, columns] = values["scatter"]
            scatter[columns, rows] = values["scatter"]
            layers[name] = LayerMoments(**{**values, "scatter": scatter})
        return ConsumerMoments(layers=layers)

    def __reduce__(self) -> tuple[Any, ...]:
        return ConsumerMoments.from_bytes, (self.to_bytes(),)


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossMoments:
    """Moments of positions at which the dense model reads x [C] and the pruned one z [K]; float64, on the CPU.

    Attributes:
        count: Positions, as a tensor of shape [].
        mean_x: Mean of x, [C].
        mean_z: Mean of z, [K].
        xz: Sum of (x - mean_x) (z - mean_z)^T, [C, K].
        zz: Sum of (z - mean_z) (z - mean_z)^T, [K, K].
    """

    count: Tensor
    mean_x: Tensor
    mean_z: Tensor
    xz: Tensor
    zz: Tensor

    @staticmethod
    def of(x: Tensor, z: Tensor) -> CrossMoments:
        """Return the moments of rows x [M, C] and z [M, K]."""
        mean_x, mean_z = (
            torch.stack([part.double().sum(dim=0) for part in rows.split(_ROWS_AT_ONCE)]).sum(dim=0) / len(rows)
            for rows in (x, z)
        )
        sums = []
        for rows_x, rows_z in zip(x.split(_ROWS_AT_ONCE), z.split(_ROWS_AT_ONCE), strict=True):
            a, b = rows_x.double() - mean_x, rows_z.double() - mean_z
            sums.append((a.T @ b, b.T @ b))
        xz, zz = (torch.stack(parts).sum(dim=0).cpu() for parts in zip(*sums, strict=True))
        count = torch.tensor(len(x), dtype=torch.float64)
        return CrossMoments(count=count, mean_x=mean_x.cpu(), mean_z=mean_z.cpu(), xz=xz, zz=_symmetric(zz))

    def __add__(self, other: CrossMoments) -> CrossMoments:
        """Return the moments of both sets of positions (Chan, Golub and LeVeque 1979). Sides can be exchanged."""
        count, mean_x, step_x = _merged_means(self.count, other.count, self.mean_x, other.mean_x)
        _, mean_z, step_z = _merged_means(self.count, other.count, self.mean_z, other.mean_z)
        return CrossMoments(
            count=count,
            mean_x=mean_x,
            mean_z=mean_z,
            xz=(self.xz + other.xz).addr_(step_x, step_z),
            zz=(self.zz + other.zz).addr_(step_z, step_z),
        )

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """mu_x [C] and mu_z [K]."""
        return self.mean_x, self.mean_z

    @property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """C_xz [C, K] and C_zz [K, K]."""
        return self.xz / self.count, self.zz / self.count


@torch.no_grad()
def collect_moments(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    layers: Sequence[str],
    positions_per_sample: int = POSITIONS_PER_SAMPLE,
    first_sample_id: int = 0,
    features: Mapping[str, int] | None = None,
) -> ConsumerMoments:
    """Run a model over batches and return moments of what some of its consumers read. The model is left as it was.

    Args:
        model: The model; it is run in eval mode on the device of its parameters.
        batches: Images [N, ...], or pairs that begin with images.
        layers: Consumers to observe; the result leaves out those that do not run.
        positions_per_sample: Most positions (pixels, tokens) to read per sample.
        first_sample_id: Number of the first sample. A sample's number decides which of its positions are drawn.
        features: Features per channel of consumers that read a flattened feature map, by name.

    Raises:
        CalibrationError: When a batch cannot be run, or the input of a layer is not finite.
    """
    sampler = PositionSampler(positions_per_sample, features)
    sums = _RunningMoments()
    samples = range(0)

    def add(name: str, module: nn.Module, value: Tensor) -> None:
        sums.add(name, sampler.rows(name, module, value, samples))

    fast = _in_fast_batches(model, batches)
    with evaluation_mode(model), observing(model, layers, add):
        for samples, images in walk(fast, model, first_sample_id):
            run(model, images, samples)
    found = sums.finish()
    for name, moments in found.items():
        if not torch.isfinite(moments.scatter).all():
            raise CalibrationError(f"the inputs of layer '{name}' are not finite on the calibration samples")
    return ConsumerMoments(
        layers={
            name: LayerMoments(count=moments.count, mean=moments.mean.cpu(), scatter=moments.scatter.cpu())
            for name, moments in found.items()
        }
    )


def _in_fast_batches(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Return the images of batches in the batches that the model's device runs fastest, which one pass tells now."""
    images = (batch if isinstance(batch, Tensor) else batch[0] for batch in batches)
    first = next(images, None)
    if first is None:
        return iter(())
    layout = fast_layout(model, first[:1].to(device_of(model)))
    return (part for batch in itertools.chain([first], images) for part in fast_batches(batch, layout))


class _RunningMoments:
    """Moments of several layers, whose rows are gathered until they are worth the work of a merge."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Tensor]] = {}
        self._found: dict[str, LayerMoments] = {}

    def add(self, name: str, rows: Tensor) -> None:
        waiting = self._waiting.setdefault(name, [])
        waiting.append(rows)
        if sum(len(each) for each in waiting) >= _ROWS_OF_A_MERGE:
            self._merge(name)

    def finish(self) -> dict[str, LayerMoments]:
        for name in list(self._waiting):
            self._merge(name)
        return self._found

    def _merge(self, name: str) -> None:
        moments = LayerMoments.of(torch.cat(self._waiting.pop(name)))
        self._found[name] = self._found[name] + moments if name in self._found else moments
