"""Statistics of activations as a line and as a table, without a tensor in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cleanai_ray.display.tables import Grid, Summary

if TYPE_CHECKING:
    from cleanai_ray.statistics.channel_statistics import ActivationStatistics, LayerStatistics

_COLUMNS = ("layer", "side", "channels", "mean", "largest", "silent")


def layer_in_short(layer: LayerStatistics) -> str:
    """Return the statistics of a layer in one line."""
    low, high = layer.range
    return (
        f"{layer.num_channels:,} channels, {int(layer.num_samples):,} samples, "
        f"mean {float(layer.mean.mean()):.4g}, range [{low:.4g}, {high:.4g}]"
    )


def model_in_short(statistics: ActivationStatistics) -> str:
    """Return the statistics of a model in one line: samples, layers, channels, and whether gradients are there."""
    layers = [layer for _, _, layer in _layers(statistics)]
    samples = int(layers[0].num_samples) if layers else 0
    words = [f"{samples:,} samples", f"{len(layers)} layers", f"{sum(each.num_channels for each in layers):,} channels"]
    words += [
        f"{len(found)} {name.replace('_', ' ')}"
        for name in ("gradients", "squared_gradients")
        if (found := getattr(statistics, name))
    ]
    return ", ".join(words)


def summary_of_statistics(statistics: ActivationStatistics) -> Summary:
    """Return a row for each layer: its mean activation, its largest magnitude, and its channels that are always 0."""
    rows = tuple(
        (
            name,
            side,
            f"{layer.num_channels:,}",
            f"{float(layer.mean.mean()):.4g}",
            f"{float(layer.largest_magnitude):.4g}",
            f"{int((layer.sum_absolutes == 0).sum()):,}",
        )
        for side, name, layer in _layers(statistics)
    )
    note = "A silent channel was 0 at every position of every sample."
    return Summary(model_in_short(statistics), (Grid(columns=_COLUMNS, rows=rows, left=("layer", "side")),), (note,))


def _layers(statistics: ActivationStatistics) -> Iterator[tuple[str, str, LayerStatistics]]:
    for side, layers in (("input", statistics.inputs), ("output", statistics.outputs)):
        for name, layer in layers.items():
            yield side, name, layer
