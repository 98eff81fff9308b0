"""The page of `cleanai open`: the status as it is now, the report, and nothing else of the folder."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from report.browser import browser

from cleanai_ray.cli import main
from cleanai_ray.commands.page_server import PageServer, live_state
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import STATUS_FILE, StudyStatus, describe, utc_now


def write_status(run: RunDirectory, silent: float = 0.0, **changed: Any) -> StudyStatus:
    now = utc_now()
    status = StudyStatus(
        **{
            "study": "small",
            "state": "running",
            "stage": "trials",
            "trials_total": 12,
            "trials_done": 4,
            "trials_failed": 1,
            "started": now - datetime.timedelta(seconds=silent + 90),
            "updated": now - datetime.timedelta(seconds=silent),
            **changed,
        }
    )
    run.write_text(STATUS_FILE, status.model_dump_json())
    return status


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    write_status(run)
    run.write_text("report.html", "<p>the report</p>")
    run.write_text("charts/speed.svg", "<svg/>")
    run.write_text("study.yaml", "name: secret")
    return run


@pytest.fixture
def server(run: RunDirectory) -> Iterator[PageServer]:
    with PageServer(run) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: PageServer, path: str, host: str | None = None) -> tuple[int, str, str]:
    """The code, the type and the text of an answer."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    found = answer.status, answer.headers.get_content_type(), answer.read().decode()
    connection.close()
    return found


def test_the_page_asks_for_the_status_and_shows_the_report(server: PageServer) -> None:
    code, kind, text = get(server, "/")
    assert (code, kind) == (200, "text/html")
    assert 'fetch("status"' in text
    assert "report.html" in text
    assert "http" not in text, "nothing is loaded from elsewhere"
    assert get(server, "/report.html?finished") == (200, "text/html", "<p>the report</p>")
    assert get(server, "/charts/speed.svg") == (200, "image/svg+xml", "<svg/>")


@pytest.mark.parametrize(
    "path", ["/study.yaml", "/status.json", "/charts/../study.yaml", "/../run/study.yaml", "/charts/none.svg", "//x"]
)
def test_nothing_else_is_served(server: PageServer, path: str) -> None:
    code, _, text = get(server, path)
    assert code == 404
    assert "secret" not in text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_page_of_another_site_gets_no_answer(server: PageServer, host: str) -> None:
    assert get(server, "/status", host=host)[0] == 403
    assert get(server, "/status", host=f"localhost:{server.server_port}")[0] == 200


def test_the_status_is_that_of_now(server: PageServer, run: RunDirectory) -> None:
    first = json.loads(get(server, "/status")[2])
    assert first["state"] == "running"
    assert first["lines"]["trials"] == "4 done, 0 running, 1 failed, of 12"
    assert first["bars"] == {"trials": [5, 12]}
    assert first["report"] is True
    write_status(run, state="finished", trials_done=11)
    second = json.loads(get(server, "/status")[2])
    assert (second["state"], second["bars"]["trials"]) == ("finished", [12, 12])


def test_the_lines_are_those_of_the_terminal(run: RunDirectory) -> None:
    status, now = write_status(run, shards_done=2, shards_total=8), utc_now()
    found = live_state(run, now)
    assert found["lines"] == describe(status, now)
    assert found["bars"]["shards"] == (2, 8)


def test_a_study_that_fell_silent_is_stopped_and_one_without_status_has_its_report(run: RunDirectory) -> None:
    write_status(run, silent=3600.0)
    assert live_state(run, utc_now())["state"] == "stopped"
    run.delete(STATUS_FILE)
    assert live_state(run, utc_now()) == {"state": "unknown", "lines": {}, "bars": {}, "report": True}


@pytest.mark.slow
def test_a_browser_follows_the_study_to_its_end(server: PageServer, run: RunDirectory) -> None:
    problems: list[str] = []
    with browser() as started:
        page = started.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.url)
        page.wait_for_function("document.title === 'small: running'")
        assert "4 done, 0 running, 1 failed, of 12" in page.inner_text("dl")
        page.frame_locator("iframe").get_by_text("the report").wait_for()
        run.write_text("report.html", "<p>the last report</p>")
        write_status(run, state="finished", trials_done=11)
        page.wait_for_function("document.title === 'small: finished'")
        assert "11 done" in page.inner_text("dl")
        page.frame_locator("iframe").get_by_text("the last report").wait_for()
        run.delete("report.html")
        page.reload()
        page.get_by_text("There is no report; `cleanai report` makes it.").wait_for()
    assert problems == []


def test_a_folder_without_a_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["open", str(tmp_path / "nothing"), "--no-browser"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(tmp_path / "nothing") in line


def test_the_command_says_where_opens_the_browser_and_ends_quietly(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def interrupted(self: PageServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(PageServer, "serve_forever", interrupted)
    for words, count in ((["--no-browser"], 0), ([], 1)):
        assert main(["open", run.location, *words]) == 0
        assert "http://127.0.0.1:" in capsys.readouterr().out
        assert len(opened) == count
    with PageServer(run) as taken:
        assert main(["open", run.location, "--no-browser", "--port", str(taken.server_port)]) == 2
    assert f"--port is {taken.server_port}" in capsys.readouterr().err
