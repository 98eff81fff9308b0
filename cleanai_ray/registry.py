"""Registries: the names that a study file can use, found by looking into a package.

When a registry is first asked, it imports every module of its package, and each module registers what it offers. So
adding a method, metric, model family, data set, task, stage, executor, chart, question, risk, report chapter, export
format or back end of targets is adding one file. Modules of other distributions join through entry points of the group
`cleanai_ray.plugins`, which are loaded when any registry is first asked, or through `load_plugins`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Generic, TypeVar, cast

from cleanai_ray.errors import RegistryError, StudyError

T = TypeVar("T")

ENTRY_POINT_GROUP = "cleanai_ray.plugins"
"""Installed distributions name their plug-in modules in this group of entry points."""


class Registry(Generic[T]):
    """Named values of one kind.

    Args:
        kind: The name of one value in error messages, for instance "coverage metric".
        package: The package whose modules register values when they are imported.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._values: dict[str, T] = {}
        self._summaries: dict[str, str] = {}
        self._loaded: set[str] = set()

    def register(self, name: str, *, summary: str | None = None) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under a name.

        Args:
            name: The name that study files use.
            summary: One line for `cleanai list`; by default the first line of the value's docstring.

        Raises:
            RegistryError: When the name is taken by another value.
        """

        def decorate(value: T) -> T:
            known = self._values.get(name)
            if known is not None and not _is_same_definition(known, value):
                raise RegistryError(f"{self.kind} '{name}' is registered twice, by {_where(known)} and {_where(value)}")
            self._values[name] = value
            self._summaries[name] = summary or (value.__doc__ or "").strip().partition("\n")[0].rstrip(".")
            return value

        return decorate

    def get(self, name: str) -> T:
        """Return the value registered under a name.

        Raises:
            RegistryError: When the name is unknown; the message lists those that are known.
        """
        self._load()
        if name not in self._values:
            raise RegistryError(f"unknown {self.kind} '{name}'; known: {', '.join(self.names())}")
        return self._values[name]

    def names(self) -> tuple[str, ...]:
        """Return every registered name, sorted."""
        self._load()
        return tuple(sorted(self._values))

    def summaries(self) -> dict[str, str]:
        """Return the one-line description of every registered value, by name."""
        self._load()
        return {name: self._summaries[name] for name in self.names()}

    def _load(self) -> None:
        package = importlib.import_module(self._package)
        for info in pkgutil.iter_modules(package.__path__, prefix=f"{self._package}."):
            if info.name not in self._loaded:
                self._loaded.add(info.name)
                try:
                    importlib.import_module(info.name)
                except BaseException:
                    self._loaded.discard(info.name)
                    raise
        _installed.load()


class _InstalledPlugins:
    """The plug-ins of installed distributions, each of which is loaded once."""

    def __init__(self) -> None:
        self._waiting: list[metadata.EntryPoint] | None = None

    def load(self) -> None:
        """Load the plug-ins that have not been loaded yet.

        Raises:
            RegistryError: When one cannot be loaded, or registers a name that is taken.
        """
        if self._waiting is None:
            self._waiting = list(metadata.entry_points(group=ENTRY_POINT_GROUP))
        while self._waiting:
            # Taken out first: a plug-in may ask a registry while it is loaded.
            entry_point = self._waiting.pop(0)
            try:
                entry_point.load()
            except Exception as error:
                self._waiting.insert(0, entry_point)
                owner = entry_point.dist.name if entry_point.dist else "unknown"
                raise RegistryError(
                    f"plug-in '{entry_point.name}' ({entry_point.value}) of the installed distribution '{owner}' "
                    f"cannot be loaded: {_reason(error)}; repair or uninstall the distribution"
                ) from error


_installed = _InstalledPlugins()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _where(value: object) -> str:
    return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__name__)}"


def _is_same_definition(first: object, second: object) -> bool:
    """Return whether two classes or functions are the same one, from a module that was imported twice."""
    return first is second or (hasattr(first, "__qualname__") and _where(first) == _where(second))


def named_callable(name: str, key: str) -> Callable[..., Any]:
    """Return a function or class that a study file names as `package.module:function`.

    The module may be in the current directory.

    Args:
        name: The name.
        key: The key of the study file, for errors.

    Raises:
        StudyError: When the name has another form, or there is nothing to call under it.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise StudyError(f"{key} is '{name}'; allowed: package.module:function")
    with importable_from_here():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise StudyError(f"{key} '{name}': module '{module_name}' cannot be imported: {_reason(error)}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        public = [each for each in dir(module) if not each.startswith("_") and callable(getattr(module, each))]
        raise StudyError(
            f"{key} '{name}': '{attribute}' is not a function of module '{module_name}'; callable there: "
            f"{', '.join(public[:20]) or 'nothing'}"
        )
    return cast("Callable[..., Any]", found)


def num_required(function: Callable[..., Any]) -> int | None:
    """Return how many arguments a function needs; None where that cannot be told."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return sum(each.kind in kinds and each.default is each.empty for each in parameters)


def can_merge(metric: Any) -> bool:
    """Return whether what several objects of a metric collected can be put together by their `merge_state`.

    torchmetrics' own one raises unless the metric says `full_state_update = False` and does not exchange at each step.
    What a function of the user's own does to the states of several objects is not known.
    """
    if not callable(getattr(metric, "merge_state", None)):
        return False
    library = getattr(sys.modules.get("torchmetrics"), "Metric", None)
    if library is None or not isinstance(metric, library) or type(metric).merge_state is not library.merge_state:
        return True
    known = all(
        reduce is None or getattr(reduce, "__name__", "").startswith("dim_zero_")
        for reduce in getattr(metric, "_reductions", {}).values()
    )
    return metric.full_state_update is False and not metric.dist_sync_on_step and known


@contextmanager
def importable_from_here() -> Iterator[None]:
    """Let modules of the current directory be imported."""
    importlib.invalidate_caches()
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules that register methods, metrics, models or data sets of their own.

    Raises:
        StudyError: When a module cannot be imported, or registers a name that is taken.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise StudyError(f"plugins: module '{module}' cannot be imported: {_reason(error)}") from error


METHODS: Registry = Registry("method", "cleanai_ray.importance")
METRICS: Registry = Registry("coverage metric", "cleanai_ray.coverage")
MODELS: Registry = Registry("model", "cleanai_ray.models")
DATASETS: Registry = Registry("data set", "cleanai_ray.data")
CHARTS: Registry = Registry("chart", "cleanai_ray.charts")
FORMATS: Registry = Registry("export format", "cleanai_ray.deploy")
TASKS: Registry = Registry("task", "cleanai_ray.tasks")
STAGES: Registry = Registry("stage", "cleanai_ray.stages")
EXECUTORS: Registry = Registry("executor", "cleanai_ray.executors")
QUESTIONS: Registry = Registry("question", "cleanai_ray.analysis.questions")
TARGETS: Registry = Registry("target", "cleanai_ray.evaluation.targets")
RISKS: Registry = Registry("risk", "cleanai_ray.analysis.risks")
CHAPTERS: Registry = Registry("report chapter", "cleanai_ray.report.sections")
