"""First and second moments of what consumers read, which can be merged, at positions drawn by sample and layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError
from cleanai_ray.nn.consumers import observing
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.repair.images import Batch, run, walk
from cleanai_ray.repair.sampling import POSITIONS_PER_SAMPLE, PositionSampler
from cleanai_ray.statistics.tensor_file import pack, unpack

_FORMAT = "cleanai-moments/2"
_FIELDS = ("count", "sum", "second")
_ROWS_AT_ONCE = 16384


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerMoments:
    """Sums over the positions x [C] that one consumer read; float64, on the CPU.

    Attributes:
        count: Positions, as a tensor of shape [].
        sum: Sum of x, [C].
        second: Sum of x x^T, [C, C].
    """

    count: Tensor
    sum: Tensor
    second: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean input mu, [C]."""
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """Population covariance S = G - mu mu^T, [C, C]."""
        return self.second / self.count - torch.outer(self.mean, self.mean)

    def __add__(self, other: LayerMoments) -> LayerMoments:
        return LayerMoments(count=self.count + other.count, sum=self.sum + other.sum, second=self.second + other.second)


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
            widths = value.sum.numel(), other[name].sum.numel()
            if widths[0] != widths[1]:
                raise CalibrationError(
                    f"moments cannot be merged: layer '{name}' reads {widths[0]} and {widths[1]} channels"
                )
        return ConsumerMoments(layers={name: value + other[name] for name, value in self.layers.items()})

    def to_bytes(self) -> bytes:
        """Serialise without loss as a safetensors file, with the upper triangles of the symmetric second moments."""
        tensors = {f"{name}/{field}": getattr(value, field) for name, value in self.layers.items() for field in _FIELDS}
        for name, value in self.layers.items():
            rows, columns = torch.triu_indices(*value.second.shape)
            tensors[f"{name}/second"] = value.second[rows, columns]
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
            size = len(values["sum"])
            rows, columns = torch.triu_indices(size, size)
            second = values["second"].new_zeros(size, size)
            second[rows, columns] = values["second"]
            second[columns, rows] = values["second"]
            layers[name] = LayerMoments(**{**values, "second": second})
        return ConsumerMoments(layers=layers)

    def __reduce__(self) -> tuple[Any, ...]:
        return ConsumerMoments.from_bytes, (self.to_bytes(),)


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossMoments:
    """Sums over positions at which the dense model reads x [C] and the pruned one z [K]; float64, on the CPU.

    Attributes:
        count: Positions.
        sum_x: Sum of x, [C].
        sum_z: Sum of z, [K].
        xz: Sum of x z^T, [C, K].
        zz: Sum of z z^T, [K, K].
    """

    count: int
    sum_x: Tensor
    sum_z: Tensor
    xz: Tensor
    zz: Tensor

    @staticmethod
    def of(x: Tensor, z: Tensor) -> CrossMoments:
        """Return the moments of rows x [M, C] and z [M, K]."""
        sums = []
        for rows_x, rows_z in zip(x.split(_ROWS_AT_ONCE), z.split(_ROWS_AT_ONCE), strict=True):
            a, b = rows_x.double(), rows_z.double()
            sums.append((a.sum(dim=0), b.sum(dim=0), a.T @ b, b.T @ b))
        sum_x, sum_z, xz, zz = (torch.stack(parts).sum(dim=0).cpu() for parts in zip(*sums, strict=True))
        return CrossMoments(count=len(x), sum_x=sum_x, sum_z=sum_z, xz=xz, zz=zz)

    def __add__(self, other: CrossMoments) -> CrossMoments:
        return CrossMoments(
            count=self.count + other.count,
            sum_x=self.sum_x + other.sum_x,
            sum_z=self.sum_z + other.sum_z,
            xz=self.xz + other.xz,
            zz=self.zz + other.zz,
        )

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """mu_x [C] and mu_z [K]."""
        return self.sum_x / self.count, self.sum_z / self.count

    @property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """C_xz [C, K] and C_zz [K, K]."""
        mean_x, mean_z = self.means
        return self.xz / self.count - torch.outer(mean_x, mean_z), self.zz / self.count - torch.outer(mean_z, mean_z)


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
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}
    samples = range(0)

    def add(name: str, module: nn.Module, value: Tensor) -> None:
        rows = sampler.rows(name, module, value, samples).double()
        count, total, second = sums.get(name, (0, 0.0, 0.0))
        sums[name] = (count + len(rows), total + rows.sum(dim=0), second + rows.T @ rows)

    with evaluation_mode(model), observing(model, layers, add):
        for samples, images in walk(batches, model, first_sample_id):
            run(model, images, samples)
    for name, (_, _, second) in sums.items():
        if not torch.isfinite(second).all():
            raise CalibrationError(f"the inputs of layer '{name}' are not finite on the calibration samples")
    found = {
        name: LayerMoments(
            count=torch.tensor(count, dtype=torch.float64), sum=total.cpu(), second=((second + second.T) / 2).cpu()
        )
        for name, (count, total, second) in sums.items()
    }
    return ConsumerMoments(layers=found)
