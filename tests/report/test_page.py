"""The HTML report in a real browser, from disk, without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report import synthetic
from report.browser import OpenPage, browser, opened

from cleanai_ray.report import make_report

pytestmark = pytest.mark.slow

METHODS = ("coverage", "wanda", "magnitude", "random")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def tables() -> synthetic.Tables:
    """128 trials, more than the table shows at once, of which two failed; one error and the name hold markup."""
    tables = synthetic.make(methods=METHODS, ratios=(0.3, 0.5), seeds=(0, 1, 2, 3, 4), finetune_epochs=2)
    first, second = (row["trial_id"] for row in tables.results[:2])
    synthetic.fail(tables, {first}, error="</script><b>bad</b>")
    return synthetic.fail(tables, {second})


@pytest.fixture(scope="module")
def report(tables: synthetic.Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    make_report(tables.write(folder))
    return folder / "report.html"


@pytest.fixture
def page(chromium: Any, report: Path) -> Iterator[OpenPage]:
    with opened(chromium, report) as found:
        yield found
    assert found.problems == []


def cells(page: Any, title: str) -> list[str]:
    """The texts of a column of the table of trials, as it is shown."""
    titles = [text.strip() for text in page.locator(".rows thead th").all_inner_texts()]
    place = titles.index(title) + 1
    return [text.strip() for text in page.locator(f".rows tbody td:nth-child({place})").all_inner_texts()]


def choose(page: Any, label: str, value: str) -> None:
    page.locator(".tools label", has_text=re.compile(f"^{re.escape(label)}")).locator("select").select_option(value)


def amount(page: Any, label: str, value: str) -> None:
    page.get_by_label(label).fill(value)


def rows_shown(page: Any) -> int:
    return page.locator(".rows tbody tr").count()


def test_the_table_shows_a_page_and_says_of_how_many(page: OpenPage, tables: synthetic.Tables) -> None:
    total = len(tables.results)
    assert total == 140
    assert rows_shown(page.page) == 100
    assert page.page.locator(".tools output").inner_text() == "1\N{EN DASH}100 of 140 trials"
    page.page.get_by_role("button", name="Next").click()
    assert rows_shown(page.page) == 40
    assert page.page.locator(".tools output").inner_text() == "101\N{EN DASH}140 of 140 trials"


def test_filters_leave_what_they_say(page: OpenPage, tables: synthetic.Tables) -> None:
    wanda = [row for row in tables.results if row["method"] == "wanda"]
    choose(page.page, "method", "wanda")
    assert rows_shown(page.page) == len(wanda) == 20
    assert set(cells(page.page, "method")) == {"wanda"}
    choose(page.page, "mode", "global")
    assert rows_shown(page.page) == 10
    limit = 100 * sorted(row["accuracy"] for row in wanda if row["mode"] == "global")[4]
    amount(page.page, "top-1, %, at least", f"{limit:.2f}")
    kept = [row for row in wanda if row["mode"] == "global" and round(100 * row["accuracy"], 2) >= round(limit, 2)]
    assert rows_shown(page.page) == len(kept)
    page.page.get_by_role("button", name="Clear").click()
    assert page.page.locator(".tools output").inner_text().endswith("of 140 trials")


def test_words_are_searched_in_every_column(page: OpenPage, tables: synthetic.Tables) -> None:
    trial = tables.results[-1]["trial_id"]
    page.page.get_by_label("search").fill(trial)
    assert cells(page.page, "trial") == [trial]
    page.page.get_by_label("search").fill("cuda memory")
    assert cells(page.page, "trial") == [tables.results[1]["trial_id"]]


def shown(page: Any, title: str) -> list[float]:
    """The numbers of a column, in the order of the rows."""
    return [float(text) for text in cells(page, title)]


def test_a_press_on_a_title_sorts_and_a_second_turns_round(page: OpenPage, tables: synthetic.Tables) -> None:
    choose(page.page, "method", "magnitude")
    own = [100 * row["macs"] / row["macs_dense"] for row in tables.results if row["method"] == "magnitude"]
    title = page.page.locator(".rows thead button", has_text="MACs")
    title.click()
    # Numbers are rounded twice on their way, to what the file holds and to what is shown.
    assert shown(page.page, "MACs, %") == pytest.approx(sorted(own), abs=0.11)
    assert title.locator("..").get_attribute("aria-sort") == "ascending"
    title.click()
    assert shown(page.page, "MACs, %") == pytest.approx(sorted(own, reverse=True), abs=0.11)


def test_trials_without_a_value_come_last_however_it_is_sorted(page: OpenPage, tables: synthetic.Tables) -> None:
    page.page.get_by_label("search").fill("coverage normalized_mean")
    for _ in range(2):
        page.page.locator(".rows thead button", has_text="top-1").click()
        assert cells(page.page, "trial")[-2:] == [row["trial_id"] for row in tables.results[:2]]


def test_what_the_tables_hold_is_text_and_never_markup(page: OpenPage, tables: synthetic.Tables) -> None:
    page.page.get_by_label("search").fill("</script>")
    assert cells(page.page, "error") == [tables.results[0]["error"]]
    assert page.page.locator(".rows b").count() == 0


def test_charts_are_drawn_and_tell_which_trial_is_under_the_pointer(page: OpenPage, tables: synthetic.Tables) -> None:
    chart = page.page.locator('figure[data-chart="accuracy_macs"]')
    chart.scroll_into_view_if_needed()
    chart.locator(".live svg").wait_for()
    assert chart.locator(".drawn").is_hidden()
    points = chart.locator(".mark-symbol[role] path, g.mark-symbol.layer_2_marks path")
    assert points.count() >= 1
    points.last.hover(force=True)
    tip = page.page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert any(row["trial_id"] in tip.inner_text() for row in tables.results)


def test_a_press_on_the_legend_dims_the_other_methods(page: OpenPage, tables: synthetic.Tables) -> None:
    chart = page.page.locator('figure[data-chart="accuracy_macs"]')
    chart.scroll_into_view_if_needed()
    chart.locator(".live svg").wait_for()
    dimmed = chart.locator('.live path[opacity="0.08"]')
    assert dimmed.count() == 0
    chart.locator(".live text", has_text=re.compile("^wanda$")).click()
    others = [row for row in tables.results if row["method"] != "wanda" and row["status"] == "ok"]
    dimmed.nth(len(others) - 1).wait_for(state="attached")
    assert dimmed.count() == len(others)


def test_every_chart_can_be_drawn_from_what_the_page_holds(page: OpenPage, report: Path) -> None:
    charts = page.page.locator("figure[data-chart]")
    assert charts.count() == len(list((report.parent / "charts").glob("*.svg"))) > 8
    for number in range(charts.count()):
        charts.nth(number).scroll_into_view_if_needed()
        charts.nth(number).locator(".live svg").wait_for()


def test_the_theme_follows_the_system_until_the_button_is_pressed(chromium: Any, report: Path) -> None:
    with opened(chromium, report, scheme="dark") as found:
        page = found.page
        background = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(background) == "rgb(18, 24, 30)"
        drawn = "figure[data-chart=differences] .live svg"
        page.locator(drawn).wait_for()
        chart = f"getComputedStyle(document.querySelector('{drawn}')).backgroundColor"
        assert page.evaluate(chart) == "rgb(18, 24, 30)"
        page.get_by_role("button", name="Light").click()
        assert page.evaluate(background) == "rgb(255, 255, 255)"
        page.wait_for_function(f"{chart} === 'rgb(255, 255, 255)'")
        for _ in range(5):  # a browser on a busy machine may write the choice down a moment after the click
            page.reload()
            if page.evaluate(background) == "rgb(255, 255, 255)":
                break
            page.wait_for_timeout(300)
        assert page.evaluate(background) == "rgb(255, 255, 255)"
        assert found.problems == []


def test_without_scripts_the_printed_charts_and_table_are_there(chromium: Any, report: Path) -> None:
    with opened(chromium, report, scripts=False) as found:
        assert found.page.locator('figure[data-chart="accuracy_macs"] .drawn svg').is_visible()
        assert found.page.locator(".trials .printed tbody tr").count() == 140
        assert found.page.locator(".tools").is_hidden()


def test_on_a_narrow_window_only_the_table_of_trials_scrolls_sideways(chromium: Any, report: Path) -> None:
    wide = """[...document.querySelectorAll('figure, pre, .scroll:not(.rows)')]
        .filter((part) => part.scrollWidth > part.clientWidth + 1).length"""
    with opened(chromium, report, width=500) as found:
        assert found.page.evaluate(wide) == 0
        found.page.locator('figure[data-chart="differences"] .live svg').wait_for()
        assert found.page.evaluate(wide) == 0


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_its_window(width: int, chromium: Any, report: Path) -> None:
    with opened(chromium, report, width=width) as found:
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        assert found.problems == []
