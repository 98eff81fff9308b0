"""`cleanai status` for studies that run, ended, failed or stopped, and for folders without a study."""

from __future__ import annotations

import datetime
import io
import re
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from cleanai_ray.cli import main
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import (
    STATUS_FILE,
    StudyStatus,
    describe,
    format_pace,
    format_seconds,
    read_status,
    show_status,
    utc_now,
)

MINUTE = datetime.timedelta(minutes=1)


def status(*, silent: float = 0.0, **changes) -> StudyStatus:
    """Of a study that calibrates, began twenty minutes before its last news, and is not done with its trials."""
    updated = utc_now() - datetime.timedelta(seconds=silent)
    return StudyStatus(
        **{
            "study": "digits",
            "state": "running",
            "stage": "calibration",
            "shards_done": 3,
            "shards_total": 8,
            "samples_per_second": 1234.4,
            "trials_total": 12,
            "trials_done": 4,
            "trials_running": 2,
            "trials_failed": 1,
            "best": "wanda-local-r0.3-0123abcd",
            "best_accuracy": 0.91239,
            "accuracy_dense": 0.975,
            "seconds_left": 200.0,
            "started": updated - 20 * MINUTE,
            "updated": updated,
            **changes,
        }
    )


def write(folder, found: StudyStatus) -> str:
    RunDirectory(folder).write_json(STATUS_FILE, found.model_dump(mode="json"))
    return str(folder)


def test_a_status_comes_back_from_disk_as_it_was(tmp_path):
    found = status(best="", best_accuracy=None)
    write(tmp_path, found)
    assert read_status(RunDirectory(tmp_path)) == found


def test_a_running_study_is_told_in_full(tmp_path, capsys):
    assert main(["status", write(tmp_path, status())]) == 0
    printed = capsys.readouterr().out
    lines = dict(line.split("  ", 1) for line in printed.splitlines())
    told = {heading.strip(): value.strip() for heading, value in lines.items()}
    updated = told.pop("updated")
    assert told == {
        "study": "digits",
        "state": "running for 20 min 00 s",
        "stage": "calibration",
        "shards": "3 of 8 done, 1,234 samples/s",
        "trials": "4 done, 2 running, 1 failed, of 12",
        "best so far": "91.24% (wanda-local-r0.3-0123abcd)",
        "dense": "97.50%",
        "scored on": "all evaluation samples",
        "time left": "3 min 20 s in this stage",
    }
    assert updated.endswith(" s ago")


@pytest.mark.parametrize(
    ("own", "best", "dense"),
    [
        ({"metric": "perplexity", "best_score": 7.3125, "score_dense": 5.0}, "perplexity 7.312 (", "perplexity 5"),
        ({"metric": "mIoU", "best_score": 0.71239, "score_dense": 0.8}, "mIoU 0.7124 (", "mIoU 0.8"),
        ({"metric": "RMSE", "best_score": None, "score_dense": 0.5}, "RMSE not finite (", "RMSE 0.5"),
        ({"metric": "accuracy"}, "91.24% (", "97.50%"),
    ],
)
def test_a_score_other_than_accuracy_is_told_by_its_name(own: dict, best: str, dense: str) -> None:
    told = describe(status(**own), utc_now())
    assert told["best so far"].startswith(best)
    assert told["dense"] == dense


def test_a_chosen_trial_is_told_with_the_samples_that_decided_nothing() -> None:
    told = describe(status(state="finished", best_samples=1509), utc_now())
    assert told["best"] == "91.24% (wanda-local-r0.3-0123abcd)"
    assert told["scored on"] == "1,509 samples that decided nothing"


def test_a_url_is_read_like_a_folder(tmp_path, capsys):
    write(tmp_path, status(study="far_away"))
    assert main(["status", tmp_path.as_uri()]) == 0
    assert "far_away" in capsys.readouterr().out


def test_what_is_not_known_yet_is_not_invented():
    unknown = status(
        stage="dense model",
        shards_done=None,
        shards_total=None,
        best="",
        best_accuracy=None,
        accuracy_dense=None,
        seconds_left=None,
    )
    told = describe(unknown, utc_now())
    assert set(told) == {"study", "state", "stage", "trials", "time left", "updated"}
    assert told["time left"] == "not known yet"


ENDED = [
    pytest.param({"state": "finished", "silent": 7200.0}, 0, "finished after 20 min 00 s", id="finished"),
    pytest.param(
        {"state": "failed", "error": "fc is missing"}, 1, "failed after 20 min 00 s: fc is missing", id="failed"
    ),
    pytest.param({"silent": 3600.0}, 1, r"stopped: .* for 1 h 00 min", id="silent"),
]
ALIVE = [
    pytest.param({"silent": 45.0}, 0, "running for 20 min 00 s", id="between two beats"),
    pytest.param({"silent": -30.0}, 0, "running for 20 min 00 s", id="clock ahead"),
]


@pytest.mark.parametrize(("changes", "code", "said"), [*ENDED, *ALIVE])
def test_the_state_and_the_exit_code_say_whether_all_is_well(tmp_path, capsys, changes, code, said):
    assert main(["status", write(tmp_path, status(**changes))]) == code
    printed = capsys.readouterr().out
    assert re.search(said, printed)
    assert ("time left" in printed) == ("running" in said)


@pytest.mark.parametrize(("changes", "code", "said"), ENDED)
def test_following_what_has_ended_tells_it_once(tmp_path, capsys, changes, code, said):
    assert main(["status", write(tmp_path, status(**changes)), "--follow"]) == code
    assert len(re.findall(said, capsys.readouterr().out)) == 1


def refused(capsys, folder) -> str:
    """Ask for a status that must be refused, and return the one line that is said."""
    assert main(["status", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(folder) in captured.err
    return captured.err


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_that_is_no_run_directory_is_one_sentence(tmp_path, capsys, name):
    line = refused(capsys, tmp_path / name)
    assert all(word in line for word in ("no study", STATUS_FILE, "cleanai run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ('{"state": "green"}', "was not written by `cleanai run`"), ("[]", "was not written by")],
)
def test_a_status_that_nobody_here_wrote_is_refused(tmp_path, capsys, content, words):
    (tmp_path / STATUS_FILE).write_text(content)
    assert words in refused(capsys, tmp_path)


def test_a_time_without_a_zone_is_refused(tmp_path, capsys):
    naive = status().model_dump(mode="json") | {"updated": "2026-01-01T00:00:00"}
    RunDirectory(tmp_path).write_json(STATUS_FILE, naive)
    assert "updated" in refused(capsys, tmp_path)


@pytest.mark.parametrize("terminal", [True, False])
def test_following_goes_on_until_the_study_ends(tmp_path, terminal):
    write(tmp_path, status())
    shown = io.StringIO()
    console = Console(file=shown, width=120, force_terminal=terminal, highlight=False)

    def end() -> None:
        time.sleep(0.3)
        write(tmp_path, status(state="finished", stage="report", trials_done=11, trials_running=0))

    thread = threading.Thread(target=end)
    thread.start()
    assert show_status(RunDirectory(tmp_path), console, follow=True) == 0
    thread.join()
    text = shown.getvalue()
    assert ("\x1b" in text) == terminal
    assert text.index("4 done, 2 running, 1 failed, of 12") < text.index("11 done, 0 running, 1 failed, of 12")
    assert "finished after 20 min 00 s" in text


def test_following_ends_when_the_study_falls_silent(tmp_path, capsys):
    assert main(["status", write(tmp_path, status(silent=59.0)), "--follow"]) == 1
    assert re.search("stopped: .* for 1 min", capsys.readouterr().out)


def test_neither_ray_nor_torch_is_needed(tmp_path):
    program = (
        "import sys\nfrom cleanai_ray.cli import main\n"
        f"assert main(['status', {write(tmp_path, status())!r}]) == 0\n"
        "assert not {'ray', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("pace", "text"), [(1234.4, "1,234 samples/s"), (10.0, "10 samples/s"), (0.32, "0.3 samples/s")]
)
def test_a_pace_is_readable(pace, text):
    assert format_pace(pace) == text
