"""Plans, results, statistics and comparisons as tables, as one line, and as a chart."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from small_nets import batches, build, example
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.charts import style
from cleanai_ray.display.tables import Displayed
from cleanai_ray.evaluation.comparison import ComparisonSums
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.pruning.result_chart import result_chart
from cleanai_ray.tasks.score import TaskScore


def chain() -> nn.Sequential:
    """Convolutions of 2 -> 4 -> 6 channels with a kernel of one pixel, and a classifier of 3 classes."""
    layers = (nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(6, 3)).eval()


@pytest.fixture(scope="module")
def result() -> cleanai.PruneResult:
    torch.manual_seed(0)
    return cleanai.prune(chain(), torch.randn(1, 2, 2, 2), method="magnitude", ratio=0.5, round_to=None)


def rows_of(grid: Any) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in grid.rows}


def test_a_result_shows_costs_and_layers_before_and_after(result: cleanai.PruneResult) -> None:
    costs, layers = result.summary().grids
    # Parameters: 2*4+4, 4*6+6, 6*3+3 = 63; with half of the channels 2*2+2, 2*3+3, 3*3+3 = 27.
    # MACs on 2 x 2 pixels: 4*8 + 4*24 + 18 = 146; then 4*4 + 4*6 + 9 = 49.
    assert rows_of(costs)["parameters"][:3] == ("63", "27", "42.9 %")
    assert rows_of(costs)["MACs of one input"][:3] == ("146", "49", "33.6 %")
    assert rows_of(costs)["prunable channels"][:3] == ("10", "5", "50.0 %")
    assert [row[0] for row in layers.rows] == ["0", "2", "6"]
    assert layers.rows[1] == ("2", "Conv2d", "6 -> 3", "30 -> 9", "96 -> 24", "25.0 %")
    assert layers.rows[2] == ("6", "Linear", "3 -> 3", "21 -> 12", "18 -> 9", "50.0 %")
    assert not {"accuracy", "measured latency"} & set(rows_of(costs))


@pytest.mark.parametrize(
    ("dense", "pruned", "row"),
    [
        (0.9, 0.885, ("accuracy", "90.00 %", "88.50 %", "", "-1.50 points")),
        (None, 0.5, ("accuracy", "", "50.00 %", "", "")),
        (
            TaskScore(metric_name="mIoU", value=0.5, merit=0.5, loss=1.0, num_samples=4),
            TaskScore(metric_name="mIoU", value=0.75, merit=0.75, loss=1.0, num_samples=4),
            ("mIoU", "50.00 %", "75.00 %", "", "+25.00 points"),
        ),
        (
            TaskScore(metric_name="perplexity", value=12.345, merit=0.1, loss=1.0, num_samples=4),
            TaskScore(metric_name="perplexity", value=20.0, merit=0.05, loss=1.0, num_samples=4),
            ("perplexity", "12.35", "20", "", ""),
        ),
    ],
)
def test_scores_stand_below_the_costs_where_they_are_given(
    result: cleanai.PruneResult, dense: Any, pruned: Any, row: tuple[str, ...]
) -> None:
    assert result.summary(dense, pruned).grids[0].rows[-1] == row


def test_the_score_of_evaluate_is_taken(result: cleanai.PruneResult) -> None:
    images, labels = torch.randn(8, 2, 2, 2), torch.arange(8) % 3
    with torch.no_grad():
        right = float((result.model(images).argmax(1) == labels).double().mean())
    row = result.summary(pruned=cleanai.evaluate(result.model, [(images, labels)])).grids[0].rows[-1]
    assert row == ("accuracy", "", f"{100 * right:.2f} %", "", "")


def test_latency_is_among_the_costs_of_a_latency_budget() -> None:
    def share(dense: nn.Module, pruned: nn.Module) -> float:
        small, large = (sum(value.numel() for value in model.parameters()) for model in (pruned, dense))
        return small / large

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3)).eval()
    result = cleanai.prune(model, torch.randn(1, 2, 8, 8), method="magnitude", budget={"latency": 0.6}, latency=share)
    ratio = share(model, result.model)
    assert rows_of(result.summary().grids[0])["measured latency"][2] == f"{100 * ratio:.1f} %"


def test_one_line_says_what_was_pruned_by_how_much(result: cleanai.PruneResult) -> None:
    said = "Sequential: 2 of 2 groups narrower, 33.6 % of the MACs, 42.9 % of the parameters"
    assert repr(result) == f"PruneResult({said})"
    assert repr(result.plan) == f"PruningPlan({said})"
    groups = {repr(group) for group in result.plan.groups}
    assert groups == {"GroupPlan(0: 4 -> 2 channels)", "GroupPlan(2: 6 -> 3 channels)"}


def test_a_plan_shows_what_each_group_loses(result: cleanai.PruneResult) -> None:
    costs, groups = result.plan.summary().grids
    assert costs == result.summary().grids[0]
    assert {(row[0], *row[2:4]) for row in groups.rows} == {("0", "4 -> 2", "50.0 %"), ("2", "6 -> 3", "50.0 %")}
    assert PruningPlan.from_json(result.plan.to_json()).summary() == result.plan.summary()


def test_statistics_show_each_layer() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, -1.0, 2.0]))  # behind the ReLU: 1, 0 and 2, whatever comes in
    stats = cleanai.calibrate(model, [torch.full((5, 2, 1, 1), 0.5)])
    (grid,) = stats.summary().grids
    assert rows_of(grid) == {"0": ("input", "2", "0.5", "0.5", "0"), "3": ("input", "3", "1", "2", "1")}
    assert repr(stats) == "ActivationStatistics(5 samples, 2 layers, 5 channels)"
    assert repr(stats.inputs["3"]) == "LayerStatistics(3 channels, 5 samples, mean 1, range [0, 2])"


def test_a_comparison_shows_the_class_that_lost_most_first() -> None:
    sums = ComparisonSums(2, torch.device("cpu"))
    right, wrong = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 5.0])
    # Three samples of class 0: the dense model is right on all, the pruned one on the last. One of class 1: both right.
    sums.add(
        torch.stack([right, right, right, wrong]), torch.stack([wrong, wrong, right, wrong]), torch.tensor([0, 0, 0, 1])
    )
    found = sums.result()
    assert repr(found) == "Comparison(4 samples: agreement 50.0 %, 2 lost, 0 gained)"
    assert found.summary().grids[0].rows == (
        ("0", "3", "100.0 %", "33.3 %", "-66.7 points"),
        ("1", "1", "100.0 %", "100.0 %", "+0.0 points"),
    )


def values() -> dict[str, Any]:
    """Every kind of value that the library returns, with its parts."""
    model, data = build("residual"), batches()
    stats = cleanai.calibrate(model, data, sections=4, outputs=True, gradients=True)
    curves = cleanai.measure_sensitivity(model, example(), data)
    result = cleanai.prune(model, example(), data, ratio=0.4, method="wanda")
    blocks = cleanai.measure_blocks(model, example(), data)
    without = cleanai.prune(model, example(), data, remove_blocks=[blocks[0].name])
    layer = next(iter(stats.inputs.values()))
    found = {"statistics": stats, "layer": layer, "histogram": layer.histogram, "curves": curves, "result": result}
    found |= {"curve": next(iter(curves.groups.values())), "plan": result.plan, "group": result.plan.groups[0]}
    return found | {"blocks": without.plan, "block": without.plan.blocks[0], "tuple": result.plan.groups}


def test_no_value_dumps_its_tensors_or_channels() -> None:
    for name, value in values().items():
        said = repr(value)
        assert "tensor(" not in said, name
        assert "array(" not in said, name
        assert len(said) < 500, name
        if not isinstance(value, tuple):
            assert type(value).__name__ in said, name
            assert "\n" not in said, name
        if isinstance(value, Displayed):
            html, file = value._repr_html_(), io.StringIO()
            Console(file=file, width=200).print(value)
            assert "<table>" in html
            assert "tensor(" not in html + file.getvalue(), name


@pytest.mark.parametrize(
    ("cost", "kept", "dense"),
    [("channels", [2, 3, 3], [4, 6, 3]), ("params", [6, 9, 12], [12, 30, 21]), ("macs", [16, 24, 9], [32, 96, 18])],
)
def test_a_plot_draws_every_layer(result: cleanai.PruneResult, cost: str, kept: list[int], dense: list[int]) -> None:
    chart = result.plot(cost).to_dict()
    (data,) = chart["datasets"].values() if "datasets" in chart else (chart["data"]["values"],)
    assert [row["layer"] for row in data] == ["0", "2", "6"]
    assert [row["kept"] for row in data] == kept
    assert [row["dense"] for row in data] == dense
    svg = style.to_svg(result.plot(cost))
    assert "Outline: dense; filled: kept" in svg


def test_layers_whose_shortened_names_are_the_same_stay_apart() -> None:
    names = [f"{'a' * 20}{middle}{'z' * 20}" for middle in ("bbbbbb", "cccccc")]
    rows = [{"layer": name, "out_channels": 1, "out_channels_dense": 2} for name in names]
    chart = result_chart(rows, "channels", "title").to_dict()
    (data,) = chart["datasets"].values() if "datasets" in chart else (chart["data"]["values"],)
    assert len({row["layer"] for row in data}) == 2


def test_a_plot_of_something_else_is_refused(result: cleanai.PruneResult) -> None:
    with pytest.raises(ValueError, match=r"cost is 'time'; allowed: channels, params, macs"):
        result.plot("time")


def test_wide_groups_are_one_line_too() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2000, 1), nn.ReLU(), nn.Conv2d(2000, 2, 1)).eval()
    plan = cleanai.prune(model, torch.from_numpy(np.ones((1, 1, 2, 2), np.float32)), method="magnitude", ratio=0.5).plan
    assert repr(plan.groups[0]) == "GroupPlan(0: 2000 -> 1000 channels)"
