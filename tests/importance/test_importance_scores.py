"""The scores of each method, computed by hand, and the inputs that it refuses."""

from __future__ import annotations

import pytest
import torch
import torch_pruning as tp
from small_nets import batches, build, example
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray import api, calibrate
from cleanai_ray.errors import PruningError, RegistryError, StudyError
from cleanai_ray.graph.graph import ChannelGraph, ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext, create_method, score_groups
from cleanai_ray.registry import METRICS
from cleanai_ray.statistics import ActivationStatistics


def group_of(graph: ChannelGraph, name: str) -> ChannelGroup:
    return next(group for group in graph.groups if group.name == name)


def score(
    net: str | nn.Module,
    group: str,
    method: str,
    *,
    statistics: ActivationStatistics | None = None,
    options: dict[str, object] | None = None,
    **context: object,
) -> Tensor:
    graph = ChannelGraph(build(net) if isinstance(net, str) else net, example())
    found = ScoringContext(graph=graph, statistics=statistics, **context)  # type: ignore[arg-type]
    return create_method(method, options).score(group_of(graph, group), found)


@pytest.mark.parametrize("metric", METRICS.names())
def test_coverage_of_a_flattened_input_is_the_mean_over_its_features(metric: str) -> None:
    statistics = calibrate(build("flattened"), batches(), sections=16)
    found = score("flattened", "conv2", "coverage", statistics=statistics, coverage_metric=metric)
    features = METRICS.get(metric)(statistics.inputs["fc1"]).tolist()
    # Channel c of 2 x 2 positions becomes the features 4 c to 4 c + 3.
    by_hand = [sum(features[4 * channel : 4 * channel + 4]) / 4 for channel in range(5)]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64))


def test_coverage_of_a_residual_stream_is_the_mean_over_its_readers() -> None:
    statistics = calibrate(build("residual"), batches())
    found = score("residual", "conv2", "coverage", statistics=statistics, coverage_metric="mean_absolute")
    metric = METRICS.get("mean_absolute")
    expected = (metric(statistics.inputs["conv1"]) + metric(statistics.inputs["head"])) / 2
    torch.testing.assert_close(found, expected)


def test_coverage_of_a_concatenated_branch_is_read_at_its_offset() -> None:
    statistics = calibrate(build("concat"), batches())
    metric = METRICS.get("apoz")
    for group, start, end in (("left", 4, 9), ("right", 9, 15)):
        found = score("concat", group, "coverage", statistics=statistics, coverage_metric="apoz")
        torch.testing.assert_close(found, metric(statistics.inputs["mix"])[start:end])
    found = score("concat", "stem", "coverage", statistics=statistics, coverage_metric="apoz")
    readers = [metric(statistics.inputs[name])[:4] for name in ("left", "right", "mix")]
    torch.testing.assert_close(found, sum(readers) / 3)


def test_observing_outputs_reads_what_the_producers_compute() -> None:
    statistics = calibrate(build("residual"), batches(), outputs=True)
    found = score(
        "residual", "conv2", "coverage", statistics=statistics, coverage_metric="mean_absolute", observe="output"
    )
    metric = METRICS.get("mean_absolute")
    expected = (metric(statistics.outputs["conv2"]) + metric(statistics.outputs["stem"])) / 2
    torch.testing.assert_close(found, expected)


def rms(values: Tensor) -> float:
    return float((values.double() ** 2).mean() ** 0.5)


def test_wanda_is_weight_times_input_norm_of_the_consumer() -> None:
    model = build("plain")
    ((images, targets),) = batches(sizes=(6,))
    with torch.no_grad():
        received = torch.relu(model.bn1(model.conv1(images)))
    found = score(model, "conv1", "wanda", statistics=calibrate(model, [(images, targets)]))
    by_hand = [float(model.conv2.weight[:, c].detach().abs().sum()) * rms(received[:, c]) for c in range(6)]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_wanda_adds_up_the_features_of_a_flattened_channel() -> None:
    model = build("flattened")
    ((images, targets),) = batches(sizes=(6,))
    with torch.no_grad():
        hidden = torch.max_pool2d(torch.relu(model.conv1(images)), 2)
        received = torch.flatten(torch.max_pool2d(torch.relu(model.conv2(hidden)), 2), 1)
    found = score(model, "conv2", "wanda", statistics=calibrate(model, [(images, targets)]))
    by_hand = [
        sum(float(model.fc1.weight[:, f].detach().abs().sum()) * rms(received[:, f]) for f in range(4 * c, 4 * c + 4))
        for c in range(5)
    ]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_wanda_of_a_grouped_consumer_reads_the_weights_of_the_right_group() -> None:
    model = build("grouped")
    ((images, targets),) = batches(sizes=(6,))
    with torch.no_grad():
        received = torch.relu(model.bn1(model.conv1(images)))
    found = score(model, "conv1", "wanda", statistics=calibrate(model, [(images, targets)]))
    # Two groups: inputs 0-3 are read by filters 0-5, inputs 4-7 by filters 6-11.
    filters = [slice(0, 6)] * 4 + [slice(6, 12)] * 4
    by_hand = [
        float(model.grouped.weight[filters[c], c % 4].detach().abs().sum()) * rms(received[:, c]) for c in range(8)
    ]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_wanda_producer_variant_is_weight_times_output_norm() -> None:
    model = build("plain")
    ((images, targets),) = batches(sizes=(6,))
    with torch.no_grad():
        computed = model.conv1(images)
    statistics = calibrate(model, [(images, targets)], outputs=True)
    found = score(model, "conv1", "wanda", statistics=statistics, options={"variant": "producer"})
    by_hand = [float(model.conv1.weight[c].detach().abs().sum()) * rms(computed[:, c]) for c in range(6)]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_the_producer_variant_is_calibrated_by_prune_itself() -> None:
    model, data = build("plain"), batches()
    plans = {
        variant: api.prune(
            model, example(), data, method="wanda", ratio=0.5, method_options={"variant": variant}
        ).plan.request["options"]
        for variant in ("consumer", "producer")
    }
    assert plans == {"consumer": {"variant": "consumer"}, "producer": {"variant": "producer"}}


def test_magnitude_is_the_group_norm_of_torch_pruning() -> None:
    """Squares of the filter, the batch norm weight and the reader's weights; scores up to torch-pruning's scale."""
    model = build("plain")
    found = score(model, "conv1", "magnitude")
    by_hand = (
        model.conv1.weight.square().sum(dim=(1, 2, 3))
        + model.bn1.weight.square()
        + model.conv2.weight.square().sum(dim=(0, 2, 3))
    )
    assert found.argsort().tolist() == by_hand.argsort().tolist()


def test_taylor_of_one_batch_is_torch_prunings() -> None:
    model = build("residual")
    ((images, targets),) = batches(sizes=(9,))
    graph = ChannelGraph(model, example())
    statistics = calibrate(model, [(images, targets)], gradients=True)
    graph.set_gradients(statistics.gradients, statistics.num_gradient_samples)
    functional.cross_entropy(model(images), targets).backward()
    theirs = tp.DependencyGraph().build_dependency(model, example_inputs=example())
    importance = tp.importance.GroupTaylorImportance()
    checked = 0
    for group in theirs.get_all_groups(ignored_layers=[model.fc]):
        name = next(n for n, module in model.named_modules() if module is group[0].dep.target.module)
        ours = create_method("taylor").score(group_of(graph, name), ScoringContext(graph=graph))
        torch.testing.assert_close(ours, importance(group).double(), rtol=1e-4, atol=1e-6)
        checked += 1
    assert checked == 3


def test_random_depends_on_seed_and_group_alone() -> None:
    first = score("plain", "conv1", "random", seed=1)
    assert torch.equal(first, score(build("plain", seed=9), "conv1", "random", seed=1))
    assert not torch.equal(first, score("plain", "conv1", "random", seed=2))
    assert not torch.equal(first, score("plain", "conv2", "random", seed=1)[:6])
    assert ((first >= 0) & (first < 1)).all()


def test_adaptive_measures_anew_between_steps_and_coverage_does_not() -> None:
    model, seen = build("plain"), []

    class Watched(list):
        """Batches that notice being read from the start."""

        def __iter__(self):  # type: ignore[no-untyped-def]
            seen.append(1)
            return super().__iter__()

    for method, passes in (("coverage", 1), ("adaptive", 3)):
        seen.clear()
        api.prune(model, example(), Watched(batches()), method=method, ratio=0.6, steps=3)
        assert len(seen) == passes, method


def test_adaptive_in_one_step_is_coverage() -> None:
    model, data = build("residual"), batches()
    plans = [api.prune(model, example(), data, method=name, ratio=0.5).plan for name in ("coverage", "adaptive")]
    assert plans[0].removed == plans[1].removed


def test_scores_of_a_group_are_divided_by_their_mean() -> None:
    graph = ChannelGraph(build("residual"), example())
    context = ScoringContext(graph=graph, seed=3)
    scores = score_groups(create_method("random"), context)
    for group in graph.groups:
        raw = create_method("random").score(group, context)
        torch.testing.assert_close(scores[group.name], raw / raw.mean())


class Faulty(ImportanceMethod):
    """Returns whatever it was given."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        return self.value


def test_scores_that_are_no_scores_are_refused() -> None:
    context = ScoringContext(graph=ChannelGraph(build("plain"), example()))
    with pytest.raises(PruningError, match=r"Faulty returned scores of shape \(4,\) .*'conv2'.*allowed: \(8,\)"):
        score_groups(Faulty(torch.zeros(4)), context)
    with pytest.raises(PruningError, match="Faulty gave the group of layer 'conv2' a score that is not finite"):
        score_groups(Faulty(torch.full((8,), float("nan"))), context)


def test_scores_that_are_all_zero_stay_zero() -> None:
    context = ScoringContext(graph=ChannelGraph(build("depthwise"), example(), ["project"]))
    assert score_groups(Faulty(torch.zeros(8)), context)["depthwise"].tolist() == [0.0] * 8


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(RegistryError, match=r"unknown method 'l7'; known: .*coverage"):
        create_method("l7")
    with pytest.raises(StudyError, match="options of method 'wanda': variant is 'both'; allowed: consumer, producer"):
        create_method("wanda", {"variant": "both"})
    with pytest.raises(StudyError, match=r"options of method 'coverage': Coverage\(\) takes no arguments"):
        create_method("coverage", {"metric": "apoz"})


def test_layers_without_statistics_are_an_error_and_never_another_score() -> None:
    statistics = calibrate(build("plain"), batches())
    without = ActivationStatistics(
        inputs={name: value for name, value in statistics.inputs.items() if name != "conv2"}, outputs={}
    )
    for method in ("coverage", "wanda"):
        with pytest.raises(PruningError, match="no activation statistics for the group of layer 'conv1'"):
            score("plain", "conv1", method, statistics=without, coverage_metric="apoz")
        with pytest.raises(PruningError, match="none were given"):
            score("plain", "conv1", method, coverage_metric="apoz")


@pytest.mark.parametrize("method", ["coverage", "wanda"])
def test_statistics_of_another_width_are_refused(method: str) -> None:
    of_six = calibrate(build("plain"), batches())
    narrow = of_six.select({"conv2": torch.arange(3).numpy()}, {})
    with pytest.raises(PruningError, match=r"layer 'conv2' have 3 channels, and .* has 6"):
        score("plain", "conv1", method, statistics=narrow, coverage_metric="apoz")
    wide = of_six.select({"conv2": torch.tensor([0, 1, 2, 3, 4, 5, 5]).numpy()}, {})
    with pytest.raises(PruningError, match=r"layer 'conv2' have 7 channels, .* has 6"):
        score("plain", "conv1", method, statistics=wide, coverage_metric="apoz")


def test_coverage_without_a_metric_is_refused() -> None:
    statistics = calibrate(build("plain"), batches())
    with pytest.raises(PruningError, match="coverage needs a coverage metric; allowed: apoz, combined"):
        score("plain", "conv1", "coverage", statistics=statistics)


class Multiplied(nn.Module):
    """A convolution that turns each of its inputs, by itself, into two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.twice = nn.Conv2d(4, 8, 1, groups=4)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.twice(torch.relu(self.conv(x)))).mean(dim=(2, 3)))


@pytest.mark.parametrize("method", ["coverage", "wanda", "magnitude", "taylor", "random"])
def test_blocks_of_one_channel_have_nothing_to_choose_from(method: str) -> None:
    torch.manual_seed(0)
    result = api.prune(Multiplied().eval(), example(), batches(), method=method, ratio=0.5)
    assert result.model.conv.out_channels == 4
    assert result.model.twice.out_channels == 4
    # One of each pair goes, the same one of every pair.
    assert result.plan.removed["twice"] in ((0, 2, 4, 6), (1, 3, 5, 7))
