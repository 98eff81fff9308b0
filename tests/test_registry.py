from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cleanai_ray import registry as registries
from cleanai_ray.errors import RegistryError, StudyError
from cleanai_ray.registry import (
    CHAPTERS,
    CHARTS,
    DATASETS,
    EXECUTORS,
    FORMATS,
    METHODS,
    METRICS,
    MODELS,
    QUESTIONS,
    RISKS,
    STAGES,
    TARGETS,
    TASKS,
    Registry,
    load_plugins,
)

PACKAGE = "temporary_shapes"
REGISTRIES = (METHODS, METRICS, MODELS, DATASETS, CHARTS, FORMATS, TASKS)
REGISTRIES += (STAGES, EXECUTORS, QUESTIONS, RISKS, CHAPTERS, TARGETS)


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry over a package of one module, which registers `circle`."""
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "circle.py").write_text(
        'import builtins\n\n\n@builtins.shapes.register("circle")\n'
        'class Circle:\n    """A round shape.\n\n    More.\n    """\n'
    )
    registry: Registry = Registry("shape", PACKAGE)
    monkeypatch.setattr("builtins.shapes", registry, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield registry
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_a_module_of_the_package_registers_itself_when_the_registry_is_asked(shapes: Registry) -> None:
    assert f"{PACKAGE}.circle" not in sys.modules
    assert shapes.names() == ("circle",)
    assert shapes.get("circle").__name__ == "Circle"


def test_a_module_in_a_folder_that_joins_the_package_later_is_found(shapes: Registry, tmp_path: Path) -> None:
    assert shapes.names() == ("circle",)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "square.py").write_text("import builtins\n\nbuiltins.shapes.register('square')(dict)\n")
    importlib.import_module(PACKAGE).__path__.append(str(elsewhere))
    assert shapes.names() == ("circle", "square")


def test_one_new_file_is_a_method_of_study_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cleanai_ray.importance as package

    before = METHODS.names()
    for attribute in ("_values", "_summaries", "_loaded"):
        monkeypatch.setattr(METHODS, attribute, getattr(METHODS, attribute).copy())
    (tmp_path / "newest.py").write_text(
        "from cleanai_ray.registry import METHODS\n\n\n"
        '@METHODS.register("newest")\nclass Newest:\n    """Scores by age."""\n\n    uses_coverage_metric = False\n'
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    try:
        assert set(METHODS.names()) == {*before, "newest"}
        assert METHODS.summaries()["newest"] == "Scores by age"
    finally:
        sys.modules.pop("cleanai_ray.importance.newest", None)


def test_an_unknown_name_is_answered_with_the_known_ones(shapes: Registry) -> None:
    shapes.register("square")(dict)
    with pytest.raises(RegistryError) as caught:
        shapes.get("triangle")
    assert str(caught.value) == "unknown shape 'triangle'; known: circle, square"


def test_a_name_that_is_taken_is_refused_and_the_first_value_stays(shapes: Registry) -> None:
    shapes.register("square")(dict)
    with pytest.raises(RegistryError) as caught:
        shapes.register("square")(list)
    assert str(caught.value) == "shape 'square' is registered twice, by builtins.dict and builtins.list"
    assert shapes.get("square") is dict


def test_two_objects_of_one_class_do_not_share_a_name(shapes: Registry) -> None:
    shapes.register("square")({"side": 1})
    with pytest.raises(RegistryError, match="registered twice"):
        shapes.register("square")({"side": 2})


def test_a_module_that_is_imported_again_may_register_its_values_again(shapes: Registry) -> None:
    first = shapes.get("circle")
    importlib.reload(sys.modules[f"{PACKAGE}.circle"])
    assert shapes.get("circle") is not first
    assert shapes.get("circle").__qualname__ == first.__qualname__


def test_a_module_that_cannot_be_imported_is_an_error_every_time(shapes: Registry, tmp_path: Path) -> None:
    (tmp_path / PACKAGE / "broken.py").write_text("import no_such_module_anywhere\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
            shapes.names()


def test_a_summary_is_given_or_the_first_line_of_the_docstring(shapes: Registry) -> None:
    shapes.register("square", summary="Four equal sides")(dict)
    assert shapes.summaries() == {"circle": "A round shape", "square": "Four equal sides"}


def test_a_registered_value_is_returned_unchanged_by_the_decorator(shapes: Registry) -> None:
    assert shapes.register("square")(dict) is dict


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_everything_that_ships_has_a_name_and_a_line_that_says_what_it_is(registry: Registry) -> None:
    summaries = registry.summaries()
    assert summaries, f"no {registry.kind} is registered"
    for name, summary in summaries.items():
        assert name == name.lower().strip()
        assert summary.strip(), f"{registry.kind} '{name}' has no summary"
        assert "\n" not in summary


def test_the_methods_and_metrics_that_study_files_rely_on_are_there() -> None:
    assert {"coverage", "adaptive", "wanda", "magnitude", "taylor", "random"} <= set(METHODS.names())
    assert {"normalized_mean", "frequency", "mean_absolute", "combined"} <= set(METRICS.names())
    readers = {name for name in METHODS.names() if METHODS.get(name).uses_coverage_metric}
    assert {"coverage", "adaptive"} <= readers
    assert readers.isdisjoint({"wanda", "magnitude", "taylor", "random"})


def test_every_registry_of_the_module_is_among_those_tested() -> None:
    assert {id(item) for item in vars(registries).values() if isinstance(item, Registry)} == {
        id(item) for item in REGISTRIES
    }


def test_a_plugin_registers_what_its_module_holds(
    shapes: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugin_of_shapes.py").write_text("import builtins\n\nbuiltins.shapes.register('star')(dict)\n")
    monkeypatch.delitem(sys.modules, "plugin_of_shapes", raising=False)
    load_plugins(["plugin_of_shapes"])
    assert shapes.names() == ("circle", "star")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a distribution whose one module has a given source, and which names it as a plug-in."""
    module = "stars_for_cleanai"

    def installed(source: str) -> None:
        folder = tmp_path / "site"
        information = folder / "stars-1.0.dist-info"
        information.mkdir(parents=True, exist_ok=True)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: stars\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[cleanai_ray.plugins]\nshining = {module}\n")
        (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.setattr(registries, "_installed", registries._InstalledPlugins())

    return installed


def test_a_plugin_of_an_installed_distribution_is_loaded_once_when_a_registry_is_asked(
    shapes: Registry, install: Callable[[str], None]
) -> None:
    install("import builtins\n\nbuiltins.shapes.register('star')(dict)\nbuiltins.shapes.register('sun')({})\n")
    assert "stars_for_cleanai" not in sys.modules
    assert shapes.names() == ("circle", "star", "sun")
    del sys.modules["stars_for_cleanai"]  # Imported again, it would register another {} as `sun`: an error.
    assert shapes.get("star") is dict
    assert "stars_for_cleanai" not in sys.modules


def test_an_installed_plugin_may_ask_a_registry(shapes: Registry, install: Callable[[str], None]) -> None:
    install("import builtins\n\nround = builtins.shapes.get('circle')\nbuiltins.shapes.register('disc')(round)\n")
    assert shapes.get("disc") is shapes.get("circle")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("import builtins\n\nbuiltins.shapes.register('circle')(dict)", "shape 'circle' is registered twice"),
    ],
)
def test_an_installed_plugin_that_fails_is_named_in_one_line_every_time(
    source: str, reason: str, shapes: Registry, install: Callable[[str], None]
) -> None:
    install(f"{source}\n")
    for _ in range(2):
        with pytest.raises(RegistryError) as caught:
            shapes.names()
        message = str(caught.value)
        assert all(word in message for word in ("'shining'", "stars_for_cleanai", "'stars'", reason))
        assert "\n" not in message


def test_in_a_new_process_importing_the_package_loads_no_plugin_and_asking_a_registry_does(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    install("print('loaded')\n")
    code = (
        "import cleanai_ray, cleanai_ray.config.study\nprint('imported')\n"
        "from cleanai_ray.registry import METHODS, METRICS\nMETHODS.names(), METRICS.names()\n"
    )
    paths = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    finished = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert finished.stdout.split() == ["imported", "loaded"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import no_such_module_anywhere", "no_such_module_anywhere"), ("1 / 0", "division"), ("def", "syntax")],
)
def test_a_plugin_that_fails_is_named_in_one_line(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_plugin.py").write_text(f"{source}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing_plugin", raising=False)
    with pytest.raises(StudyError) as caught:
        load_plugins(["failing_plugin"])
    assert str(caught.value).startswith("plugins: module 'failing_plugin' cannot be imported: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
