from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.errors import ArtifactError
from cleanai_ray.storage.run_directory import RunDirectory, resolve_filesystem

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.fixture(params=["folder", "url"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    """A run directory given as a folder, and the same given as a file:// URL."""
    folder = tmp_path / "run"
    return RunDirectory(folder if request.param == "folder" else folder.as_uri())


def test_what_was_written_is_read_back(run: RunDirectory) -> None:
    table = pa.table({"a": [1, None, 3], "b": ["x", "y", None]})
    run.write_bytes("deep/er/raw.bin", bytes(range(256)))
    run.write_text("text.txt", "é\n")
    run.write_json("value.json", {"b": [1, 2.5, None], "a": True})
    run.write_table("table.parquet", table)
    assert run.read_bytes("deep/er/raw.bin") == bytes(range(256))
    assert run.read_text("text.txt") == "é\n"
    assert run.read_json("value.json") == {"a": True, "b": [1, 2.5, None]}
    assert run.read_table("table.parquet").equals(table)
    assert run.list("") == ["deep", "table.parquet", "text.txt", "value.json"]


@given(value=JSON)
def test_json_survives(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = RunDirectory(tmp_path_factory.getbasetemp() / "json")
    run.write_json("value.json", value)
    assert run.read_json("value.json") == value


def test_equal_values_make_equal_json_files(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("first.json", {"a": 1, "b": 2})
    run.write_json("second.json", {"b": 2, "a": 1})
    assert run.read_bytes("first.json") == run.read_bytes("second.json")


def test_the_files_lie_where_the_location_says(run: RunDirectory, tmp_path: Path) -> None:
    run.write_text("models/t1/plan.json", "{}")
    assert (tmp_path / "run" / "models" / "t1" / "plan.json").read_text() == "{}"
    assert run.local_path("models/t1/plan.json") == tmp_path / "run" / "models" / "t1" / "plan.json"
    assert run.local_path() == tmp_path / "run"
    assert run.is_local


def test_nothing_is_there_before_it_is_written_or_after_it_is_deleted(run: RunDirectory) -> None:
    assert not run.exists()
    assert run.list("") == []
    run.delete("models")
    run.write_text("models/a", "a")
    assert run.exists()
    assert run.exists("models")
    assert run.exists("models/a")
    run.delete("models/a")
    assert not run.exists("models/a")
    run.write_text("models/b", "b")
    run.delete("models")
    assert not run.exists("models")


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_text("results.txt", "old")
    with pytest.raises(TypeError):
        run.write_json("results.txt", {"not JSON": object()})
    with pytest.raises(TypeError):
        run.write_bytes("results.txt", object())  # type: ignore[arg-type]
    assert run.read_text("results.txt") == "old"
    assert os.listdir(tmp_path) == ["results.txt"]


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_text("results.txt", "old")
    # The process dies between the last byte and the rename: the worst moment.
    program = (
        "import os, sys\n"
        "from cleanai_ray.storage.run_directory import RunDirectory\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), 9)\n"
        "RunDirectory(sys.argv[1]).write_text('results.txt', 'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert run.read_text("results.txt") == "old"
    assert len(os.listdir(tmp_path)) == 2
    assert run.list("") == ["results.txt"]


def test_readers_see_the_old_file_or_the_new_one_and_never_a_part(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    old, new = b"o" * 200_000, b"n" * 100_000
    run.write_bytes("data", old)
    with (tmp_path / "data").open("rb") as reader:
        first_half = reader.read(100_000)
        run.write_bytes("data", new)
        assert first_half + reader.read() == old
    assert run.read_bytes("data") == new


def test_a_marker_holds_for_the_inputs_it_was_made_from_only(run: RunDirectory) -> None:
    assert not run.is_complete("shards/0001", "digest-a")
    run.write_text("shards/0001", "statistics")
    assert not run.is_complete("shards/0001", "digest-a")
    run.mark("shards/0001", "digest-a")
    assert run.is_complete("shards/0001", "digest-a")
    assert not run.is_complete("shards/0001", "digest-b")
    assert not run.is_complete("shards/0002", "digest-a")
    run.mark("shards/0001", "digest-b")
    assert run.is_complete("shards/0001", "digest-b")
    assert not run.is_complete("shards/0001", "digest-a")


def test_a_marker_does_not_outlive_the_content_it_speaks_of(run: RunDirectory) -> None:
    run.write_text("shard", "from inputs a")
    run.mark("shard", "digest-a")
    run.write_text("shard", "from inputs b, and the process died before it marked them")
    assert not run.is_complete("shard", "digest-a")


def test_a_run_directory_travels_to_a_process_in_another_folder(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_text("x", "here")
    assert pickle.loads(pickle.dumps(run)).read_text("x") == "here"
    monkeypatch.chdir(tmp_path)
    travelling = pickle.dumps(RunDirectory("run"))
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert pickle.loads(travelling).read_text("x") == "here"


def test_a_missing_file_is_named(run: RunDirectory) -> None:
    for read in (run.read_bytes, run.read_text, run.read_json, run.read_table):
        with pytest.raises(ArtifactError) as caught:
            read("absent.file")
        assert str(caught.value) == f"'absent.file' is not in run directory '{run.location}'"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_a_file_that_is_not_json_is_named(content: bytes, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_bytes("value.json", content)
    with pytest.raises(ArtifactError, match=r"'value\.json' in run directory '.*' is not (JSON|UTF-8): "):
        run.read_json("value.json")


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "footer", "pages"])
def test_a_file_that_is_not_parquet_is_named(damage: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_table("t.parquet", pa.table({"a": list(range(10_000)), "b": [str(item) for item in range(10_000)]}))
    whole = run.read_bytes("t.parquet")
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    damaged = {
        "empty": b"",
        "text": b"trial_id,accuracy\n",
        "truncated": whole[: len(whole) // 2],
        "footer": whole[:footer] + b"\xff" * 40 + whole[footer + 40 :],
        "pages": whole[:4] + b"\xff" * 400 + whole[404:],
    }
    run.write_bytes("t.parquet", damaged[damage])
    with pytest.raises(ArtifactError, match=r"'t\.parquet' in run directory '.*' is not Parquet: "):
        run.read_table("t.parquet")


def test_a_location_that_no_filesystem_opens_is_refused_by_name() -> None:
    with pytest.raises(ArtifactError, match="'nonsense://bucket/prefix' is not a folder or a URL"):
        resolve_filesystem("nonsense://bucket/prefix")


def test_a_location_with_a_tilde_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_filesystem("~/runs")[1] == str(tmp_path / "runs")


def test_a_filesystem_without_rename_gets_every_file_in_one_put() -> None:
    run = RunDirectory("mock:///run")
    run._filesystem.create_dir("run")
    table = pa.table({"a": [1, 2]})
    run.write_table("results.parquet", table)
    run.mark("results.parquet", "digest-a")
    assert run.read_table("results.parquet").equals(table)
    assert run.is_complete("results.parquet", "digest-a")
    assert run.list("") == ["results.parquet", "results.parquet.done"]
    run.delete("results.parquet")
    assert not run.exists("results.parquet")
    assert not run.is_local
    with pytest.raises(ArtifactError, match="'mock:///run' is not a local folder"):
        run.local_path("report.pdf")


def test_a_file_moves_with_its_marker_and_a_folder_with_all_it_holds(run: RunDirectory) -> None:
    run.write_text("trials/a.json", "{}")
    run.mark("trials/a.json", "key")
    run.write_text("models/a/deep/er.txt", "x")
    run.write_text("models/b.txt", "y")
    run.move("trials/a.json", "history/1/trials/a.json")
    run.move("models/a", "history/1/models/a")
    run.move("absent", "history/1/absent")
    assert run.is_complete("history/1/trials/a.json", "key")
    assert run.read_text("history/1/models/a/deep/er.txt") == "x"
    assert (run.list("trials"), run.list("models"), run.list("history/1")) == ([], ["b.txt"], ["models", "trials"])


def test_a_copy_leaves_what_it_was_made_of(run: RunDirectory) -> None:
    run.write_text("models/a/weights", "x")
    run.copy("models/a", "history/1/models/a")
    run.copy("models/a/weights", "elsewhere/weights")
    found = [run.read_text(name) for name in ("models/a/weights", "history/1/models/a/weights", "elsewhere/weights")]
    assert found == ["x"] * 3
