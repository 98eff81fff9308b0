"""Charts of many trials colour a few methods, and show no ranking and no mean that may be chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from report.tables import study_of
from report.with_images import study_with_images

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts import style
from cleanai_ray.charts.accuracy_macs import mean_lines
from cleanai_ray.charts.selection_test import configurations
from cleanai_ray.charts.trial_marks import MOST_SERIES, shown_labels
from cleanai_ray.registry import CHARTS

METRICS = tuple(f"coverage/{name}" for name in ("apoz", "entropy", "frequency"))
OTHERS = ("wanda", "magnitude", "taylor", "hessian", "lamp", "fpgm", "random")
LEVEL = {label: 91.0 - place for place, label in enumerate((*METRICS, *OTHERS))}


def many(**options: Any) -> StudyFrames:
    """Ten series, each a point worse than the one before it; the macs are a share that the ratio leaves."""
    study = study_of(
        lambda label, ratio, mode, steps, seed: LEVEL[label] - 10 * ratio + 0.1 * seed, labels=tuple(LEVEL), **options
    )
    macs = ((1 - pl.col("ratio")) * 1000).cast(pl.Int64)
    sized = study.results.with_columns(macs.alias("macs"), pl.lit(1000, dtype=pl.Int64).alias("macs_dense"))
    return StudyFrames(**{**vars(study), "results": sized})


def legends_of(node: Any) -> list[list[str]]:
    """The names that the legends of a chart list."""
    if isinstance(node, dict):
        own = [node["legend"]["values"]] if isinstance(node.get("legend"), dict) and "values" in node["legend"] else []
        return own + [found for value in node.values() for found in legends_of(value)]
    return [found for value in node for found in legends_of(value)] if isinstance(node, list) else []


def test_six_methods_are_coloured_each_with_one_metric() -> None:
    shown = shown_labels(many())
    assert len(shown) == MOST_SERIES == 6
    assert {"coverage/apoz", "magnitude", "random", "wanda", "taylor", "hessian"} == set(shown)


def test_all_other_trials_are_grey_and_the_legend_names_the_six() -> None:
    study = many()
    chart = CHARTS.get("accuracy_macs")(study).to_dict()
    assert {tuple(names) for names in legends_of(chart)} == {tuple(shown_labels(study))}
    svg = style.to_svg(CHARTS.get("accuracy_macs")(study))
    assert "grey: all other trials" in svg
    assert "from the worst to the best of its trials" in svg
    assert style.FAINT in svg
    assert ">fpgm<" not in svg


def test_lines_are_means_and_bands_the_range_of_trials() -> None:
    study = many()
    rows = mean_lines(study.ok.select("label", "mode", "amount", "macs_share", "accuracy"), ["wanda"])
    assert len(rows) == 4
    row = rows.row(by_predicate=(pl.col("mode") == "local") & (pl.col("amount") == "ratio 0.3"), named=True)
    assert row["macs_share"] == pytest.approx(0.7)
    assert (row["low"], row["accuracy"], row["high"]) == pytest.approx((0.85, 0.851, 0.852))
    assert row["count"] == 3


def test_trials_near_chance_do_not_stretch_the_axis() -> None:
    study = many()
    is_random = pl.col("method") == "random"
    broken = study.results.with_columns(pl.when(is_random).then(0.1).otherwise(pl.col("accuracy")).alias("accuracy"))
    chart = CHARTS.get("accuracy_macs")(StudyFrames(**{**vars(study), "results": broken}))
    assert "trials of 120 below the axis" in style.to_svg(chart)
    scale = chart.to_dict()["hconcat"][0]["layer"][0]["encoding"]["y"]["scale"]
    lowest = min(LEVEL[label] for label in shown_labels(study) if label != "random") - 5  # at a ratio of 0.5
    assert scale["domain"][0] == pytest.approx(lowest / 100, abs=0.02)


def test_a_ranking_that_separates_nothing_is_not_drawn() -> None:
    random = np.random.default_rng(0)
    ratios = (0.1, 0.2, 0.3, 0.4)
    noise = study_of(lambda *_: 90 + random.normal(), labels=OTHERS[:4], ratios=ratios)
    assert CHARTS.get("critical_difference")(noise) is None
    apart = study_of(lambda label, ratio, *_: LEVEL[label] - ratio, labels=OTHERS[:4], ratios=ratios, modes=("local",))
    assert CHARTS.get("critical_difference")(apart) is not None


def test_recovery_leaves_out_what_is_near_chance() -> None:
    def after(label: str, ratio: float, mode: str, *_: object) -> float:
        return 12.0 if ratio > 0.4 else 80.0 if mode == "local" else 70.0

    def before(label: str, ratio: float, mode: str, *_: object) -> float:
        return 60.0 if mode == "local" else 11.0

    study = study_of(after, labels=("wanda", "random"), pruned=before)
    chart = CHARTS.get("recovery")(study)
    (ends,) = [row["text"] for rows in chart.to_dict()["datasets"].values() for row in rows if row.get("text")][:1]
    assert ends == "80.0 %, 3 of 12"
    assert "Left out: 18 of 24 trials, near chance after pruning or in the end" in style.to_svg(chart)
    assert CHARTS.get("recovery")(study_of(lambda *_: 80.0, labels=("wanda",), pruned=lambda *_: 11.0)) is None


N = 400
DECIDES = np.arange(N) < N // 2


def right(deciding: int, test: int) -> np.ndarray:
    place = np.arange(N) % (N // 2)
    return np.where(DECIDES, place < deciding, place < test)


def test_selection_against_test_has_a_point_per_configuration() -> None:
    trials = [{"method": name, "calibration_seed": draw} for name in ("wanda", "taylor") for draw in (0, 1)]
    hits = [right(190, 170), right(186, 172), right(180, 180), right(180, 184)]
    file = {"recommend": {"max_accuracy_loss": 50.0}}
    study = study_with_images(trials, hits, right(195, 185), DECIDES, study=file)
    rows = {row["label"]: row for row in configurations(study).to_dicts()}
    assert (rows["wanda"]["deciding"], rows["wanda"]["accuracy"]) == pytest.approx((0.94, 0.855))
    assert (rows["taylor"]["deciding"], rows["taylor"]["accuracy"]) == pytest.approx((0.90, 0.91))
    svg = style.to_svg(CHARTS.get("selection_test")(study))
    # 85.5 % less 94 %; of the dense model, by which nothing was chosen, 185 less 195 of 200.
    assert "number 1 where it is decided and number 2 on the test images (\N{MINUS SIGN}8.50 points)" in svg
    assert "Dense, by which nothing was chosen: \N{MINUS SIGN}5.00 points" in svg
    assert "NaN" not in svg


def test_without_test_images_there_is_no_such_chart() -> None:
    study = study_with_images([{}], [right(150, 150)], right(195, 195), np.zeros(N, dtype=bool))
    assert CHARTS.get("selection_test")(study) is None
