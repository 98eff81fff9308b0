"""Differences from a reference per ratio and mode: their values, their reference, and how they are drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from report.tables import study_of
from report.with_images import study_with_images
from scipy import stats

from cleanai_ray.analysis.comparisons import Comparison
from cleanai_ray.analysis.differences import Differences, find_differences, reference_of
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS

LEADS = {"wanda": 2.0, "magnitude": 0.0, "random": -6.0}
LUCK = (0.1, -0.2, 0.4)


def accuracy(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
    """Wanda is 2 points better than magnitude and as lucky as the seed; random is worse at the higher ratio."""
    luck = {"wanda": LUCK[seed], "random": 0.01 * LUCK[seed]}.get(label, 0.0)
    return 90 - 10 * ratio + LEADS[label] * (1 + (ratio > 0.4)) + luck


def study(**options: Any) -> StudyFrames:
    return study_of(accuracy, **{"labels": tuple(LEADS), **options})


def found_in(frames: StudyFrames) -> Differences:
    found = find_differences(frames)
    assert found is not None
    return found


def test_every_method_is_compared_with_the_reference_in_each_cell() -> None:
    found = found_in(study())
    assert found.reference == "magnitude"
    cells = [(amount, mode) for amount in ("ratio 0.3", "ratio 0.5") for mode in ("local", "global")]
    expected = [(*cell, name) for cell in cells for name in ("random", "wanda")]
    assert [(row.amount, row.mode, row.method) for row in found.rows] == expected
    wanda = found.rows[1].found
    differences = [2 + luck for luck in LUCK]
    assert wanda.effect == pytest.approx(np.mean(differences))
    # Three draws: Student's interval at 5 % / 8, for eight differences are shown.
    reach = stats.t.ppf(1 - 0.05 / 16, 2) * np.std(differences, ddof=1) / np.sqrt(3)
    assert wanda.high == pytest.approx(np.mean(differences) + reach)
    assert [row.found.effect for row in found.rows if row.method == "random"] == pytest.approx(
        [-6, -6, -12, -12], abs=0.002
    )


@pytest.mark.parametrize(
    ("labels", "file", "reference"),
    [
        (("wanda", "magnitude", "taylor"), {}, "magnitude"),
        (("coverage/apoz", "magnitude", "taylor"), {"questions": {"primary": "b2"}}, "taylor"),
        (("coverage/apoz", "magnitude"), {"questions": {"primary": "b2"}}, "magnitude"),
        (("coverage/apoz", "magnitude"), {"questions": {"primary": "nonsense"}}, "magnitude"),
        (("wanda", "random"), {}, "random"),
        (("wanda", "taylor"), {}, "dense"),
        (("magnitude",), {}, "dense"),
    ],
)
def test_the_reference_is_that_of_the_primary_question_or_a_usual_one(
    labels: tuple[str, ...], file: dict, reference: str
) -> None:
    assert reference_of(study_of(lambda *_: 90.0, labels=labels, study=file)) == reference


def test_without_a_reference_methods_are_compared_with_dense_image_by_image() -> None:
    dense = np.arange(400) < 360
    hits = np.arange(400) < 340
    frames = study_with_images([{}], [hits], dense, np.zeros(400, dtype=bool))
    (row,) = found_in(frames).rows
    assert row.found.effect == pytest.approx(-5.0)
    assert row.found.unit == "images"
    # 20 of 400 images lost, none gained: the standard error of the mean of 400 values, of which 20 are -100.
    assert row.found.error == pytest.approx(np.std([-100.0] * 20 + [0.0] * 380, ddof=1) / 20)
    assert row.is_told


def test_cells_in_which_both_are_near_chance_are_left_out() -> None:
    def broken(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        return 12.0 if ratio > 0.4 else 80.0

    found = found_in(study_of(broken, labels=tuple(LEADS)))
    assert {row.amount for row in found.rows} == {"ratio 0.3"}
    assert find_differences(study_of(lambda *_: 12.0, labels=tuple(LEADS))) is None


def rows_of(chart: Any) -> list[dict[str, Any]]:
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows if "told" in row]


def test_where_nothing_differed_no_least_difference_is_told() -> None:
    same = Comparison(effect=0.0, error=0.0, freedom=2.0)
    assert same.reach == 0
    assert same.detectable is None
    other = replace(same, error=0.1)
    assert other.reach is not None
    assert other.detectable is not None
    assert other.detectable > other.reach > 0


def test_the_chart_says_what_is_beyond_doubt_and_what_could_be_told() -> None:
    frames = study()
    chart = CHARTS.get("differences")(frames)
    drawn = {(row["name"], round(row["effect"], 1)): row for row in rows_of(chart)}
    assert drawn["random", -6.0]["told"] == "beyond doubt"
    wanda = drawn["wanda", 2.1]
    assert wanda["told"] == "cannot tell"  # 2.1, give or take 17.7 * 0.18
    detectable = next(row.found.detectable for row in found_in(frames).rows if row.method == "wanda")
    assert wanda["text"] == f"+2.1 ({detectable:.1f})"
    svg = style.to_svg(chart)
    assert "Differences from magnitude, in points of top-1" in svg
    assert "all 8 hold at once" in svg
    assert "NaN" not in svg
    assert float(svg.split('width="')[1].split('"')[0]) <= style.WIDTH + 5


def test_intervals_end_where_the_axis_does() -> None:
    lucky = study_of(
        lambda label, ratio, mode, steps, seed: 90 + 9 * (label == "wanda") * LUCK[seed], labels=tuple(LEADS)
    )
    rows = rows_of(CHARTS.get("differences")(lucky))
    ends = [value for row in rows for name in ("low", "high", "lowest", "highest") if (value := row[name]) is not None]
    effects = [row["effect"] for row in rows]
    spread = max([*effects, 0.0]) - min([*effects, 0.0])
    assert max(ends) - min(ends) <= 1.1 * 9 * max(spread, 1.0)  # four times the spread to both sides, and a margin


def test_intervals_of_usual_width_are_drawn_whole_and_a_cut_one_is_told() -> None:
    """Both methods are 0.2 better give or take 1.5, which is wider than they are apart; all at once: 3 and more."""
    lucky = study_of(
        lambda label, ratio, mode, steps, seed: 90 + 2 * (label != "magnitude") * LUCK[seed], labels=tuple(LEADS)
    )
    reach = stats.t.ppf(0.975, 2) * np.std([2 * luck for luck in LUCK], ddof=1) / np.sqrt(3)
    chart = CHARTS.get("differences")(lucky)
    for row in rows_of(chart):
        assert (row["low"], row["high"]) == pytest.approx((0.2 - reach, 0.2 + reach))
        assert row["highest"] < 0.2 + 2 * reach  # cut
    cut = "at the edge of its panel goes on beyond it"
    assert cut in style.to_svg(chart)
    alike = study_of(lambda label, *_: 90 + LEADS[label], labels=tuple(LEADS))
    assert cut not in style.to_svg(CHARTS.get("differences")(alike))


def test_without_intervals_the_chart_says_so() -> None:
    one = study_of(accuracy, labels=tuple(LEADS), seeds=(0,))
    svg = style.to_svg(CHARTS.get("differences")(one))
    assert "Without intervals" in svg
