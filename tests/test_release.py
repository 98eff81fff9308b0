"""What a release consists of: the distributions, what they hold, and that they run where nothing else of ours is."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
from executors.uninstalled import python_without_package

import cleanai_ray

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "model.train.epochs=1",
    "sweep.methods=[magnitude]",
    "sweep.ratios=[0.3]",
    "sweep.modes=[local]",
    "sweep.coverage_metrics=[]",
    "repair.compensation=none",
    "repair.batch_norm=none",
    "finetune.epochs=0",
    "evaluation.latency=null",
)
"""The quickstart as one trial, for which the whole way from the study to the report takes seconds."""


def script(name: str) -> ModuleType:
    """Return a script of .ci/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lower_bounds_become_constraints() -> None:
    lines = ["pydantic>=2.7", "ray[tune]>=2.60,<2.61", "triton>=3.2; platform_system == 'Linux'"]
    assert script("lower_bounds").constraints(lines) == [
        "pydantic==2.7",
        "ray==2.60",
        'triton==3.2; platform_system == "Linux"',
    ]


@pytest.mark.parametrize("line", ["pydantic", "pydantic<3", "pydantic>2"])
def test_a_requirement_without_a_lower_bound_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=f"'{line}' has 0 lower bounds"):
        script("lower_bounds").constraints([line])


def test_every_requirement_of_a_user_has_a_lower_bound() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(script("lower_bounds").constraints(project["dependencies"])) == len(project["dependencies"])


def urls_of_a_release() -> dict[str, str]:
    """The addresses that PyPI shows, below that of the repository."""
    urls: dict[str, str] = script("check_release").URLS
    assert {"Repository", "Documentation", "Changelog", "Issues"} == set(urls)
    return urls


def release(folder: Path, *, changelog: str = "## 1.2.0 - 2030-01-01\n", owner: str = "us/tool") -> Path:
    """Write the files that name a version and a repository."""
    (folder / "cleanai_ray").mkdir()
    (folder / "cleanai_ray" / "__init__.py").write_text('"""Doc."""\n\n__version__ = "1.2.0"  # its only home\n')
    (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n{changelog}")
    urls = "\n".join(f'{name} = "https://github.com/{owner}{path}"' for name, path in urls_of_a_release().items())
    (folder / "pyproject.toml").write_text(f"[project.urls]\n{urls}\n[tool]\n")
    return folder


def test_a_release_that_says_the_same_everywhere_has_no_problems(tmp_path: Path) -> None:
    assert script("check_release").problems(release(tmp_path), "v1.2.0", "us/tool") == []


@pytest.mark.parametrize(
    ("tag", "changelog", "owner", "words"),
    [
        ("v1.2.1", "## 1.2.0\n", "us/tool", "the tag is 'v1.2.1', and cleanai_ray.__version__ is '1.2.0'"),
        ("1.2.0", "## 1.2.0\n", "us/tool", "needed: the tag 'v1.2.0'"),
        ("v1.2.0", "## Unreleased\n", "us/tool", "no chapter '## 1.2.0'"),
        ("v1.2.0", "## 1.2.0\n", "us/tools", "Issues is 'https://github.com/us/tools/issues'"),
    ],
)
def test_a_release_that_contradicts_itself_is_stopped(
    tmp_path: Path, tag: str, changelog: str, owner: str, words: str
) -> None:
    (problem,) = script("check_release").problems(release(tmp_path, changelog=changelog, owner=owner), tag, "us/tool")
    assert words in problem


def test_a_release_without_addresses_is_told_which_to_add(tmp_path: Path) -> None:
    root = release(tmp_path)
    wanted = (root / "pyproject.toml").read_text()
    (root / "pyproject.toml").write_text("[tool]\n")
    (problem,) = script("check_release").problems(root, "v1.2.0", "us/tool")
    lines = [line for line in wanted.splitlines() if "=" in line]
    assert len(lines) == 4
    assert all(line in problem for line in lines)


@dataclass(frozen=True)
class Installation:
    """A wheel that was built from the source distribution and installed where the repository is not.

    Attributes:
        wheel: The wheel.
        bin: The folder of the commands.
        folder: An empty working directory.
    """

    wheel: Path
    bin: Path
    folder: Path

    def call(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [str(self.bin / command), *words],
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )


def built(hook: str, source: Path, dist: Path) -> Path:
    """Call a hook of the build backend in a source tree, as `python -m build` does, and return the distribution."""
    program = f"import sys; from setuptools import build_meta; print('built', build_meta.{hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(dist)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dist / done.stdout.strip().splitlines()[-1].removeprefix("built ")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    pytest.importorskip("setuptools", minversion="77", reason="the build backend is not installed")
    folder = tmp_path_factory.mktemp("release")
    source, dist, unpacked = folder / "source", folder / "dist", folder / "unpacked"
    dist.mkdir()
    shutil.copytree(ROOT / "cleanai_ray", source / "cleanai_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    with tarfile.open(built("build_sdist", source, dist)) as archive:
        archive.extractall(unpacked, filter="data")
    (tree,) = unpacked.iterdir()
    wheel = built("build_wheel", tree, dist)
    (folder / "python").mkdir()
    python = python_without_package(folder / "python")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--ignore-installed", str(wheel)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), *install], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder / "empty").mkdir()
    return Installation(wheel, python.parent, folder / "empty")


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(installation: Installation) -> None:
    packed = set(zipfile.ZipFile(installation.wheel).namelist())
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "cleanai_ray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "cleanai_ray/config/quickstart.yaml" in files
    assert files - packed == set()
    assert {name for name in packed if not name.startswith("cleanai_ray-")} == files


@pytest.mark.slow
def test_the_installed_package_is_this_version_from_another_place(installation: Installation) -> None:
    program = (
        "import json, importlib.metadata as m, cleanai_ray; from cleanai_ray.config.shipped import QUICKSTART; found = "
        "m.metadata('cleanai-ray'); print(json.dumps([cleanai_ray.__file__, found['Version'], QUICKSTART.read_text(), "
        "found.get_all('Provides-Extra'), found.get_all('Project-URL')]))"
    )
    done = installation.call("python", "-c", program)
    assert done.returncode == 0, done.stderr
    file, version, study, extras, addresses = json.loads(done.stdout)
    assert Path(file).is_relative_to(installation.bin.parent)
    assert version == cleanai_ray.__version__
    assert study == (ROOT / "jobs" / "studies" / "quickstart.yaml").read_text()
    assert {"onnx", "detection", "language", "hub", "huggingface", "tracking", "all"} <= set(extras)
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    assert {address.partition(",")[0] for address in addresses or ()} == set(declared)


@pytest.mark.slow
def test_the_installed_command_runs_the_quickstart_and_lists_methods(installation: Installation) -> None:
    listed = installation.call("cleanai", "list", "methods")
    assert listed.returncode == 0, listed.stderr
    assert any(line.startswith("coverage ") for line in listed.stdout.splitlines())
    changes = [word for change in SMALL for word in ("--set", change)]
    done = installation.call("cleanai", "quickstart", "--executor", "local", *changes)
    assert done.returncode == 0, done.stdout + done.stderr
    run = installation.folder / "artifacts" / "quickstart"
    assert (run / "report.html").stat().st_size > 0
    assert (run / "report.pdf").read_bytes().startswith(b"%PDF")
    assert pl.read_parquet(run / "results.parquet")["status"].to_list() == ["ok"]
