"""The committed report of the research study: its answers by slow and obvious means, and every number traced back."""

from __future__ import annotations

import itertools
import re
import shutil
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pypdf import PdfReader
from scipy import stats

from cleanai_ray.analysis.answers import Answer
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import p_text, signed
from cleanai_ray.analysis.questions import answer_questions
from cleanai_ray.report import make_report
from cleanai_ray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "artifacts" / "research_fashion_mnist"
READ_NO_DATA = {"bn_scale", "fpgm", "lamp", "magnitude", "random"}
CHANCE = 10 + 0.1 * (93.6 - 10)
"""Points up to which a model is near chance: guessing, and a tenth of what the dense model has learned."""
KEYS = ("a", "b1", "b2", "c", "d", "e", "f1", "f2", "g", "h1", "h2", "i")

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return pq.read_table(FOLDER / "results.parquet").to_pylist()


@pytest.fixture(scope="module")
def answers() -> dict[str, Answer]:
    study = StudyFrames.load(RunDirectory(FOLDER))
    return {answer.key: answer for answer in answer_questions({study.name: study})}


@pytest.fixture(scope="module")
def kept() -> dict[str, dict[str, tuple[set[int], int]]]:
    """By trial and group of layers, the channels that were kept, and how many there were."""
    found: dict[str, dict[str, tuple[set[int], int]]] = defaultdict(dict)
    layers = pq.read_table(FOLDER / "layers.parquet").to_pylist()
    for layer in sorted(layers, key=lambda layer: layer["layer_index"]):
        width = layer["out_channels_dense"]
        if layer["group"] is not None and layer["group"] not in found[layer["trial_id"]]:
            left = set(range(width)) - set(layer["removed_channels"])
            found[layer["trial_id"]][layer["group"]] = (left, width)
    return found


def cell(row: Row) -> tuple[Any, ...]:
    return row["requested_budget"], row["mode"], row["steps"]


def replicate(row: Row) -> tuple[Any, ...]:
    return row["seed"], row["calibration_samples"], row["calibration_seed"]


def mean_difference(
    first: Iterable[Row],
    second: Iterable[Row],
    unit: Callable[[Row], Any] = cell,
    column: str = "accuracy",
    within: Callable[[Row], Any] = replicate,
    least: float = 0.0,
) -> float:
    """Mean over units of the mean over replicates of differences, in points; several trials of one are averaged.

    Pairs in which neither side is above `least` points are left out.
    """
    sides: list[dict[Any, list[float]]] = []
    for side in (first, second):
        grouped: dict[Any, list[float]] = defaultdict(list)
        for row in side:
            grouped[unit(row), within(row)].append(100 * row[column])
        sides.append(grouped)
    by_unit: dict[Any, list[float]] = defaultdict(list)
    for key in sides[0].keys() & sides[1].keys():
        first_mean, second_mean = (statistics.fmean(side[key]) for side in sides)
        if max(first_mean, second_mean) > least:
            by_unit[key[0]].append(first_mean - second_mean)
    return statistics.fmean(statistics.fmean(values) for values in by_unit.values())


def of(rows: list[Row], method: str) -> list[Row]:
    return [row for row in rows if row["method"] == method]


def found_in(answer: Answer, pattern: str) -> tuple[str, ...]:
    match = re.search(pattern, answer.sentence)
    assert match is not None, answer.sentence
    return match.groups()


def test_the_study_is_whole(rows: list[Row]) -> None:
    assert {row["status"] for row in rows} == {"ok"}
    methods = 10 + 2 * 8  # coverage and adaptive with each of eight metrics
    budgets = {row["requested_budget"] for row in rows}
    assert len(budgets) >= 2
    assert len({row["calibration_seed"] for row in rows}) >= 3
    assert len(rows) == methods * len(budgets) * 2 * 6 == len({row["trial_id"] for row in rows})
    assert all(None not in (row["accuracy_pruned"], row["accuracy_repaired"]) for row in rows)


def test_every_question_is_answered(answers: dict[str, Answer]) -> None:
    assert tuple(answers) == KEYS
    for answer in answers.values():
        assert None not in (answer.effect, answer.low, answer.high), answer.sentence
        assert answer.low <= answer.effect <= answer.high


def test_the_best_metric_is_that_of_the_highest_mean(rows: list[Row], answers: dict[str, Answer]) -> None:
    coverage = of(rows, "coverage")
    accuracies: dict[str, list[float]] = defaultdict(list)
    for row in coverage:
        accuracies[row["coverage_metric"]].append(row["accuracy"])
    order = sorted(accuracies, key=lambda name: -statistics.fmean(accuracies[name]))
    best, rival = found_in(answers["a"], r"^(\w+), the best on average, against (\w+):")
    assert best == order[0]
    assert " > ".join(order) in answers["a"].sentence
    own, other = ([row for row in coverage if row["coverage_metric"] == name] for name in (best, rival))
    assert answers["a"].effect == pytest.approx(mean_difference(own, other))


@pytest.mark.parametrize(("key", "first", "second"), [("b1", "coverage", "magnitude"), ("b2", "coverage", "taylor")])
def test_two_methods_are_compared_cell_by_cell(
    rows: list[Row], answers: dict[str, Answer], key: str, first: str, second: str
) -> None:
    assert answers[key].effect == pytest.approx(mean_difference(of(rows, first), of(rows, second)))
    assert answers[key].num_pairs == len(of(rows, second))
    metric, lead = found_in(answers[key], r"Its best metric on average, (\w+): (\S+) points")
    own = [row for row in of(rows, first) if row["coverage_metric"] == metric]
    assert answers["a"].sentence.startswith(f"{metric}, the best on average")
    assert lead == signed(mean_difference(own, of(rows, second)))


def test_wanda_is_compared_with_the_harder_of_its_halves(rows: list[Row], answers: dict[str, Answer]) -> None:
    against = {name: mean_difference(of(rows, "wanda"), of(rows, name)) for name in ("coverage", "magnitude")}
    (rival,) = found_in(answers["c"], r"^wanda against (\w+)")
    (other,) = set(against) - {rival}
    assert answers["c"].effect == pytest.approx(against[rival])
    assert f"{signed(against[other])} points." in answers["c"].sentence


def test_adaptive_is_compared_with_coverage_in_several_steps(rows: list[Row], answers: dict[str, Answer]) -> None:
    several = [row for row in rows if row["steps"] > 1]
    found = mean_difference(of(several, "adaptive"), of(several, "coverage"))
    assert answers["d"].effect == pytest.approx(found)


def test_global_is_compared_with_local_within_a_method(rows: list[Row], answers: dict[str, Answer]) -> None:
    wide, near = ([row for row in rows if row["mode"] == mode] for mode in ("global", "local"))

    def unit(row: Row) -> tuple[Any, ...]:
        return row["method"], row["requested_budget"], row["steps"]

    # Reconstruction compares no scores over the network, so that both of its modes are the same.
    assert mean_difference(of(wide, "reconstruction"), of(near, "reconstruction"), unit) == 0
    wide, near = ([row for row in side if row["method"] != "reconstruction"] for side in (wide, near))
    assert answers["e"].effect == pytest.approx(mean_difference(wide, near, unit))
    for method in {row["method"] for row in rows} - {"reconstruction"}:
        own = mean_difference(of(wide, method), of(near, method), unit)
        assert f"{method} {signed(own)}" in answers["e"].sentence


@pytest.mark.parametrize(("key", "column"), [("f1", "accuracy_pruned"), ("f2", "accuracy_repaired")])
def test_every_method_is_compared_with_random(
    rows: list[Row], answers: dict[str, Answer], key: str, column: str
) -> None:
    leads = {
        method: mean_difference(of(rows, method), of(rows, "random"), column=column, least=CHANCE)
        for method in {row["method"] for row in rows} - {"random"}
    }
    (clearest,) = found_in(answers[key], r"^(\w+)[ \w()]*, the clearest of")
    assert answers[key].effect == pytest.approx(leads[clearest])
    for method, lead in re.findall(r"[:,] (\w+) (\S\d+\.\d\d)", answers[key].sentence.partition("in points")[2]):
        assert lead == signed(leads[method])


def test_the_order_before_and_after_repair_is_a_rank_correlation(rows: list[Row], answers: dict[str, Answer]) -> None:
    by_cell: dict[Any, list[float]] = defaultdict(list)
    for key in {(cell(row), replicate(row)) for row in rows}:
        own = [row for row in rows if (cell(row), replicate(row)) == key]
        before, after = ([row[f"accuracy_{stage}"] for row in own] for stage in ("pruned", "repaired"))
        by_cell[key[0]].append(stats.spearmanr(before, after).statistic)
    expected = statistics.fmean(statistics.fmean(values) for values in by_cell.values())
    assert answers["g"].effect == pytest.approx(expected)


def test_more_samples_are_compared_within_a_draw(rows: list[Row], answers: dict[str, Answer]) -> None:
    # The global trials of reconstruction are copies of its local ones.
    copies = {"method": "reconstruction", "mode": "global"}
    readers = [
        row
        for row in rows
        if row["method"] not in READ_NO_DATA and any(row[name] != value for name, value in copies.items())
    ]
    many, few = ([row for row in readers if row["calibration_samples"] == count] for count in (1024, 128))
    found = mean_difference(
        many, few, lambda row: (row["method"], *cell(row)), within=lambda row: row["calibration_seed"]
    )
    assert answers["h1"].effect == pytest.approx(found)


def test_plans_of_two_draws_are_compared_by_the_channels_both_keep(
    rows: list[Row], answers: dict[str, Answer], kept: dict[str, Any]
) -> None:
    overlaps: dict[Any, list[float]] = defaultdict(list)
    readers = [row for row in rows if row["method"] not in READ_NO_DATA]
    for first, second in itertools.combinations(readers, 2):
        same = (first["label"], *cell(first), first["calibration_samples"])
        if same != (second["label"], *cell(second), second["calibration_samples"]):
            continue
        pairs = [(own, kept[second["trial_id"]][group][0]) for group, (own, _) in kept[first["trial_id"]].items()]
        shared, either = (sum(len(join(one, two)) for one, two in pairs) for join in (set.__and__, set.__or__))
        overlaps[same[:-1]].append(shared / either)
    expected = statistics.fmean(statistics.fmean(values) for values in overlaps.values())
    assert answers["h2"].effect == pytest.approx(expected)


def test_coverage_and_importance_are_related_by_what_they_remove(
    rows: list[Row], answers: dict[str, Answer], kept: dict[str, Any]
) -> None:
    pairs = sorted(
        (first["trial_id"], second["trial_id"])
        for first in of(rows, "coverage")
        for second in [*of(rows, "magnitude"), *of(rows, "taylor")]
        if (cell(first), replicate(first)) == (cell(second), replicate(second))
    )
    pairs = pairs[:: -(-len(pairs) // 400)]  # of many pairs, evenly spaced ones
    means = []
    for group, (_, width) in kept[pairs[0][0]].items():
        found = []
        for first, second in pairs:
            marks = [[channel in kept[trial][group][0] for channel in range(width)] for trial in (first, second)]
            if all(0 < sum(own) < width for own in marks):
                found.append(stats.spearmanr(*marks).statistic)
        means += [statistics.fmean(found)] if found else []
    assert answers["i"].effect == pytest.approx(statistics.fmean(means))
    assert answers["i"].num_pairs == len(pairs)


NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def numbers(pdf: Path) -> Counter[str]:
    """Every number of a PDF and how often it stands there, the page numbers apart."""
    pages = [page.extract_text() for page in PdfReader(pdf).pages]
    bodies = [re.sub(rf"\b{place} of {len(pages)}\b", "", text) for place, text in enumerate(pages, start=1)]
    return Counter(number for body in bodies for number in NUMBER.findall(body))


def test_every_number_of_the_report_comes_from_the_tables(tmp_path: Path) -> None:
    for file in FOLDER.iterdir():
        if file.suffix in (".parquet", ".yaml", ".json"):
            shutil.copy(file, tmp_path / file.name)
    make_report(RunDirectory(tmp_path))
    committed = numbers(FOLDER / "report.pdf")
    assert sum(committed.values()) > 1000
    assert committed - numbers(tmp_path / "report.pdf") == Counter()


def test_the_documentation_tells_the_answers_of_the_tables(rows: list[Row], answers: dict[str, Answer]) -> None:
    text = " ".join((REPOSITORY / "docs" / "research.md").read_text(encoding="utf-8").split())
    means = re.findall(r"`(\w+)`(?: \(| has )(\d\d\.\d\d) %", text)
    assert len(means) == 6
    for method, mean in means:
        assert mean == f"{100 * statistics.fmean(row['accuracy'] for row in of(rows, method)):.2f}", method
    for answer in answers.values():
        p_value = "" if answer.p_value is None else p_text(answer.p_value)
        span = f"{signed(answer.low)} to {signed(answer.high)}"
        line = f"| {answer.question} | {answer.verdict} | {signed(answer.effect)} ({span}) | {p_value} |"
        assert " ".join(line.split()) in text
