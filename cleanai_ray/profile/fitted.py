"""A latency profile: how the time of a whole model falls as its groups get narrower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cleanai_ray.profile.shrinkage import Savings, noise_of, shrunk
from cleanai_ray.pruning.cost import CostModel

_PRIOR_WEIGHT = 0.05
_NUM_SHARES = 129


@dataclass(frozen=True, kw_only=True)
class TimedModel:
    """A model that was timed.

    Attributes:
        kind: `group` (one group narrowed alone), `repeat` (the dense model once more, beside such), `uniform` (all
            groups by one share) or `check` (nothing is fitted to it).
        widths: Channels that are kept, of the groups that are narrowed.
        ratio: Its time over the dense model's, the mean of two; of a repeat, over the other one's.
    """

    kind: str
    widths: Mapping[str, int]
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Stairs:
    """The time of the whole model as one group gets narrower.

    Attributes:
        widths: The widths that were timed, ascending; the last is the dense one.
        times: Their times over the dense model's, ascending: a monotone fit, 1 at the dense width.
        step: Channels from one width to the next that takes less time.
    """

    widths: np.ndarray
    times: np.ndarray
    step: int

    def at(self, width: int) -> float:
        """Return the time at a width, over the dense model's.

        It is that of the next multiple of the step, since hardware computes whole ones. Between multiples that were
        timed it is interpolated, and below the narrowest it is that of the narrowest.
        """
        whole = min(-(-width // self.step) * self.step, int(self.widths[-1]))
        return float(np.interp(whole, self.widths, self.times))


def fit_stairs(times: Mapping[int, float], num_channels: int, step: int) -> Stairs:
    """Fit the times of one group: no width may be slower than a wider one.

    That is isotonic regression (pool adjacent violators), which keeps stairs as they are. The dense width has time 1.

    Args:
        times: Times over the dense model's, by width.
        num_channels: The dense width.
        step: Channels between widths.
    """
    from sklearn.isotonic import IsotonicRegression

    widths = np.array([*sorted(times), num_channels])
    measured = np.array([*(times[width] for width in widths[:-1]), 1.0])
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(widths, measured)
    fitted[-1] = 1.0
    return Stairs(widths=widths, times=np.asarray(fitted, dtype=np.float64), step=step)


class LatencyProfile:
    """Predicts the time of a model from the widths of its groups.

    The saving of a group alone is as measured, less what is noise (`shrinkage`). Groups that cut the same layers do not
    save twice: the time of a layer is taken to be its dense time, times the kept share of its inputs, times that of its
    outputs, where a group's *effective* share at a width is the one that gives its saving alone. The dense times of
    layers are the non-negative ones that explain all savings best, drawn to their share of the MACs where those leave
    them open. At last, what models with all groups narrowed took corrects the saving as a whole.

    Args:
        cost: The cost model of the dense model, which knows which groups cut which layers.
        channels: The dense width of every group.
        steps: Channels between the widths of every group.
        dense_ms: The dense model's milliseconds.
        timed: The models that were timed; those of kind `check` are not read.

    Attributes:
        dense_ms: The dense model's milliseconds.
        noise: The standard deviation of one timing over its mean; 0 where nothing was timed twice.
        stairs: The fitted times of each group alone.
        timed: The models that were timed.
    """

    def __init__(
        self,
        cost: CostModel,
        channels: Mapping[str, int],
        steps: Mapping[str, int],
        dense_ms: float,
        timed: Sequence[TimedModel],
    ) -> None:
        self.dense_ms = dense_ms
        self.timed = tuple(timed)
        self._cost = cost
        self._channels = channels
        self.noise = noise_of(model.ratio for model in timed if model.kind == "repeat")
        alone = self._fit_alone([model for model in timed if model.kind == "group"])
        self.stairs = {name: fit_stairs(times, channels[name], steps[name]) for name, times in alone.items()}
        self._layer_times = self._fit_layers([model for model in timed if model.kind in ("group", "uniform")])
        self._known_shares: dict[tuple[str, int], tuple[float, float]] = {}
        self._effective = {name: self._savings_of(name) for name in channels}
        self._correction = self._fit_correction([model for model in timed if model.kind == "uniform"])

    def __repr__(self) -> str:
        return f"LatencyProfile({len(self.stairs)} groups, {self.dense_ms:.3g} ms dense)"

    @property
    def cost(self) -> CostModel:
        """The cost model of the dense model."""
        return self._cost

    @property
    def layer_times(self) -> Mapping[str, float]:
        """The dense time of each layer that groups cut, over the dense model's."""
        return self._layer_times

    def predict(self, removed: Mapping[str, int]) -> float:
        """Return the milliseconds of the model in which each group loses a number of channels."""
        saved = self._saving({name: self._channels[name] - count for name, count in removed.items()})
        return self.dense_ms * (1.0 - self._corrected(saved))

    def predict_widths(self, widths: Mapping[str, int]) -> float:
        """Return the milliseconds of the model with these widths; a group that is not named has its dense width."""
        return self.predict({name: self._channels[name] - width for name, width in widths.items()})

    def _fit_alone(self, timed: Sequence[TimedModel]) -> dict[str, dict[int, float]]:
        """Return the times of each group alone over the dense model's, by width, less their noise."""
        ratios: dict[str, dict[int, float]] = {name: {} for name in self._channels}
        for model in timed:
            ((name, width),) = model.widths.items()
            ratios[name][width] = model.ratio
        measured = {}
        for name, times in ratios.items():
            lost = np.array([1.0 - width / self._channels[name] for width in times])
            saved = np.array([1.0 - ratio for ratio in times.values()])
            measured[name] = Savings(lost=lost, saved=saved, work=self._work(name))
        found = shrunk(measured, self.noise)
        return {name: dict(zip(times, 1.0 - found[name], strict=True)) for name, times in ratios.items()}

    def _work(self, name: str) -> float:
        """Return the share of the model's MACs that goes with a group."""
        macs, kept = self._cost.layer_macs, self._cost.kept_work({name: self._channels[name]})
        total = sum(macs.values()) or 1.0
        return sum(macs[layer] * (1.0 - share) for layer, share in kept.items()) / total

    def _fit_layers(self, timed: Sequence[TimedModel]) -> dict[str, float]:
        """Return the dense time of each layer over the model's, by non-negative least squares."""
        from scipy.optimize import nnls

        macs = self._cost.layer_macs
        total = sum(macs.values()) or 1.0
        names = list(macs)
        prior = np.array([macs[name] / total for name in names])
        features, savings = [], []
        for model in timed:
            kept = self._cost.kept_work(
                {name: self._channels[name] - width for name, width in model.widths.items()},
            )
            features.append([1.0 - kept[name] for name in names])
            savings.append(1.0 - self._less_noise(model))
        system = np.vstack([np.array(features).reshape(-1, len(names)), _PRIOR_WEIGHT * np.eye(len(names))])
        found, _ = nnls(system, np.concatenate([savings, _PRIOR_WEIGHT * prior]))
        return dict(zip(names, found, strict=True))

    def _less_noise(self, model: TimedModel) -> float:
        """Return the time of a model over the dense model's: of a group alone as it was fitted, else as measured."""
        if model.kind != "group":
            return model.ratio
        ((name, width),) = model.widths.items()
        return self.stairs[name].at(width)

    def _model_saving(self, gone: Mapping[str, float]) -> float:
        """Return the saving, over the dense time, if layers were as fast as their effective shares say."""
        kept = self._cost.kept_work({name: share * self._channels[name] for name, share in gone.items()})
        return sum(self._layer_times[name] * (1.0 - share) for name, share in kept.items())

    def _savings_of(self, name: str) -> np.ndarray:
        """Return the savings of a group alone at effective shares from 0 to 1, evenly spaced, ascending."""
        savings = [self._model_saving({name: share}) for share in np.linspace(0.0, 1.0, _NUM_SHARES)]
        return np.maximum.accumulate(savings)

    def _saving(self, widths: Mapping[str, int]) -> float:
        """Return the saving of several groups together, before the correction."""
        found = {name: self._share(name, width) for name, width in widths.items()}
        beyond = sum(more for _, more in found.values())
        return self._model_saving({name: gone for name, (gone, _) in found.items()}) + beyond

    def _share(self, name: str, width: int) -> tuple[float, float]:
        """Return the effective share that a group has lost, and what it saves beyond all that its layers take."""
        key = name, width
        if key not in self._known_shares:  # A search asks for the same widths again and again.
            wanted, reach = 1.0 - self.stairs[name].at(width), self._effective[name]
            gone = float(np.interp(wanted, reach, np.linspace(0.0, 1.0, _NUM_SHARES))) if wanted > 0 else 0.0
            self._known_shares[key] = gone, max(0.0, wanted - float(reach[-1]))
        return self._known_shares[key]

    def _fit_correction(self, timed: Sequence[TimedModel]) -> tuple[np.ndarray, np.ndarray]:
        """Return predicted savings and the ones that were measured in their place, both ascending from 0."""
        pairs = sorted((self._saving(model.widths), 1.0 - model.ratio) for model in timed)
        predicted = np.array([0.0, *(pair[0] for pair in pairs)])
        measured = np.minimum(np.maximum.accumulate([0.0, *(pair[1] for pair in pairs)]), 1.0)
        return predicted, measured

    def _corrected(self, saving: float) -> float:
        predicted, measured = self._correction
        if predicted[-1] <= 0 or saving <= 0:
            return min(1.0, saving)
        if saving > predicted[-1]:
            return min(1.0, saving * measured[-1] / predicted[-1])
        return float(np.interp(saving, predicted, measured))
