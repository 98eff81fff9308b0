"""Mean ranks, Friedman's test and the critical difference."""

from __future__ import annotations

import numpy as np
import pytest
from report.tables import study_of

from cleanai_ray.analysis.average_ranks import average_ranks, rank_cells
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS

# Demsar (JMLR 7, 2006), table 6: AUC of C4.5 and three variants on 14 data sets.
PAPER = """
0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975
0.957 0.978 0.946 0.970
"""
NAMES = ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]


def test_the_example_of_the_paper() -> None:
    found = rank_cells(np.array([line.split() for line in PAPER.split("\n") if line], dtype=float), NAMES)
    ranks = dict(zip(found.labels, found.ranks, strict=True))
    assert ranks["C4.5"] == pytest.approx(3.143, abs=5e-4)
    assert ranks["C4.5+m"] == pytest.approx(2.000, abs=5e-4)
    assert ranks["C4.5+cf"] == pytest.approx(2.893, abs=5e-4)
    assert ranks["C4.5+m+cf"] == pytest.approx(1.964, abs=5e-4)
    assert found.labels[0] == "C4.5+m+cf"
    assert found.critical_difference == pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, abs=1e-3)
    assert 0.01 < found.p_value < 0.05


def ordered(label: str, ratio: float, mode: str, steps: int, seed: int) -> float | None:
    if label == "taylor" and (ratio, mode) == (0.5, "global"):
        return None
    return {"wanda": 91.0, "taylor": 90.0, "random": 80.0}[label] - 10 * ratio - (mode == "global")


LABELS = ("wanda", "taylor", "random")


def test_a_cell_in_which_a_method_failed_ranks_nobody() -> None:
    found = average_ranks(study_of(ordered, labels=LABELS, ratios=(0.3, 0.4, 0.5)))
    assert found is not None
    assert (found.labels, found.ranks, found.num_cells) == (LABELS, (1.0, 2.0, 3.0), 5)


def test_too_few_cells_or_methods_are_not_ranked() -> None:
    few = study_of(ordered, labels=LABELS)
    two = study_of(ordered, labels=LABELS[:2], ratios=(0.1, 0.2, 0.3, 0.4))
    assert average_ranks(few) is None
    assert average_ranks(two) is None
    assert CHARTS.get("critical_difference")(two) is None


def test_the_diagram_shows_every_method_with_its_rank() -> None:
    svg = style.to_svg(CHARTS.get("critical_difference")(study_of(ordered, labels=LABELS, ratios=(0.1, 0.2, 0.3, 0.4))))
    assert "Mean rank of the methods" in svg
    assert "Over 8 cells" in svg
    assert all(label in svg for label in LABELS)


def test_cells_that_are_copies_count_once_and_many_methods_need_many_cells() -> None:
    def flat(label: str, ratio: float, mode: str, *_: int) -> float:
        return 90 - 10 * ratio - int(label.removeprefix("m"))

    copied = study_of(flat, labels=LABELS_OF[:3], ratios=(0.2, 0.3, 0.4, 0.5))
    found = average_ranks(copied)
    assert found is not None
    assert found.num_cells == 4  # of 8, for both modes are the same
    ratios = tuple(number / 20 for number in range(1, 12))
    assert average_ranks(study_of(flat, labels=LABELS_OF, ratios=ratios[:10])) is None
    assert average_ranks(study_of(flat, labels=LABELS_OF, ratios=ratios)) is not None


LABELS_OF = tuple(f"m{number}" for number in range(6))
