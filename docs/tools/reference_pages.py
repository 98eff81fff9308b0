"""The pages of the reference that are made from the code at every build, so that they cannot differ from it."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

import pyarrow as pa
import typer
from pydantic.fields import FieldInfo

from cleanai_ray import cli, registry
from cleanai_ray.config.messages import allowed, show
from cleanai_ray.config.section import Section
from cleanai_ray.config.study import Study
from cleanai_ray.storage import schemas

_SIMPLE_TYPES = {pa.string(): "text", pa.float64(): "number", pa.int64(): "integer", pa.bool_(): "true or false"}


PAGES = ("reference/study.md", "reference/tables.md", "reference/command-line.md", "reference/names.md")
"""The paths of the generated pages, below docs/."""


def pages() -> dict[str, str]:
    """Return the Markdown of every generated page, by its path below docs/."""
    makers: Sequence[Callable[[], str]] = (study_page, tables_page, command_line_page, names_page)
    return {path: make() for path, make in zip(PAGES, makers, strict=True)}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; a bar in a cell is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def _paragraphs(docstring: str | None) -> str:
    """Return a docstring as Markdown, without the sections of Google's style."""
    text = inspect.cleandoc(docstring or "")
    return re.split(r"\n\n(?:Args|Attributes|Raises|Returns):\n", text)[0]


# The study file


def study_page() -> str:
    """Return the page on study files: a table of keys for each section."""
    parts = [
        "# Study files",
        "Every key of a study file, as the code declares it. Keys without a default must be given. A study is checked "
        "before anything is computed: a wrong key or value ends with one sentence and exit code 2. `cleanai run STUDY "
        "--set a.b=c` overrides a key, and `study.yaml` in the run directory holds all of them as they were used.",
    ]
    parts += [_section_text(path, section) for path, section in study_sections()]
    return "\n\n".join(parts) + "\n"


def study_sections() -> Iterator[tuple[str, type[Section]]]:
    """Yield the dotted path and the class of every section, the study itself first (with an empty path)."""

    def walk(path: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
        yield path, section
        for name, field in section.model_fields.items():
            inner = _section_of(field.annotation)
            if inner is not None:
                yield from walk(f"{path}.{name}".lstrip("."), inner)

    yield from walk("", Study)


def describe_key(section: type[Section], name: str) -> str:
    """Return the description of a key: its own, or the first sentence of the section that is its value.

    Raises:
        ValueError: When it has neither.
    """
    field = section.model_fields[name]
    inner = _section_of(field.annotation)
    text = field.description or (_paragraphs(inner.__doc__).partition("\n")[0] if inner else "")
    if not text:
        raise ValueError(f"{section.__name__}.{name} has no description")
    return text


def _section_of(annotation: Any) -> type[Section] | None:
    """Return the section that a key holds, on its own, in a list, or as an alternative to null."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple, Annotated):
        return next(filter(None, map(_section_of, get_args(annotation))), None)
    return None


def _section_text(path: str, section: type[Section]) -> str:
    heading = f"## `{path}`" if path else "## The file"
    rows = []
    for name, field in section.model_fields.items():
        description = describe_key(section, name)
        inner = _section_of(field.annotation)
        inner_path = f"{path}.{name}".lstrip(".")
        link = f" See [`{inner_path}`](#{_anchor(inner_path)})." if inner else ""
        rows.append((f"`{name}`", _default(field), _allowed(field, inner), description + link))
    text = _paragraphs(section.__doc__)
    return f"{heading}\n\n{text}\n\n" + table(("key", "default", "allowed", "meaning"), rows)


def _anchor(path: str) -> str:
    return re.sub(r"[^a-z0-9_]", "", path.lower())


def _allowed(field: FieldInfo, inner: type[Section] | None) -> str:
    if inner is None:
        text = allowed(Annotated[(field.annotation, *field.metadata, None)])
        return re.sub(r"(?<=text that matches )\S+", r"`\g<0>`", text)
    optional = type(None) in get_args(field.annotation)
    is_list = get_origin(field.annotation) is tuple
    return "a list of mappings" if is_list else "a mapping or null" if optional else "a mapping"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*needed*"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "its keys' defaults"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{show(value)}`".replace("''", '""') if value != "" else '`""`'


# Tables


def table_schemas() -> dict[str, pa.Schema]:
    """Return the schema of every Parquet file of a run directory, by file name."""
    found = {}
    for name in dir(schemas):
        if name.endswith("_FILE"):
            schema = getattr(schemas, name.removesuffix("_FILE"), None)
            if schema is None and name == "COVERAGE_FILE":
                schema = schemas.coverage_schema(registry.METRICS.names())
            if schema is None:
                raise ValueError(f"storage/schemas.py names the file {name} and has no schema for it")
            found[getattr(schemas, name)] = schema
    first = schemas.RESULTS_FILE
    return {first: found[first], **dict(sorted(found.items()))}


def tables_page() -> str:
    """Return the page on the columns of every Parquet file."""
    parts = [
        "# Tables",
        "Every column of every Parquet file. [The run directory](../../artifacts/README.md) says what a row of each "
        "stands for. The files carry these descriptions in their schemas, too.",
    ]
    for file, schema in table_schemas().items():
        rows = [(f"`{field.name}`", _type_name(field.type), _description(field)) for field in schema]
        parts.append(f"## {file}\n\n" + table(("column", "type", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _description(field: pa.Field) -> str:
    return (field.metadata or {}).get(b"description", b"").decode()


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type_name(kind.value_type)}"
    return _SIMPLE_TYPES.get(kind, "integer" if pa.types.is_integer(kind) else str(kind))


# Command line


def command_line_page() -> str:
    """Return the page on the commands."""
    parts = [
        "# Command line",
        "`cleanai COMMAND`, or `python -m cleanai_ray COMMAND`. `cleanai COMMAND --help` shows the same text. "
        "[Exit codes](exit-codes.md) and [environment variables](environment-variables.md) have pages of their own.",
    ]
    group: Any = typer.main.get_command(cli.app)
    rows = [(f"`{', '.join(item.opts)}`", item.help or "") for item in group.params]
    parts.append(table(("option without a command", "meaning"), rows))
    for name, command in group.commands.items():
        parts.append(_command_text(name, command))
    return "\n\n".join(parts) + "\n"


def _command_text(name: str, command: Any) -> str:
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    options = [item for item in command.params if item.param_type_name == "option" and item.name != "help"]
    usage = " ".join(["cleanai", name, *(item.metavar or item.name.upper() for item in arguments)])
    usage += " [OPTIONS]" if options else ""
    rows = [(f"`{item.metavar or item.name.upper()}`", "*needed*", item.help or "") for item in arguments]
    for item in options:
        default = "*needed*" if item.required else "" if item.default in (None, False, ()) else f"`{item.default}`"
        rows.append((f"`{', '.join(item.opts)}`", default, item.help or ""))
    body = table(("argument or option", "default", "meaning"), rows)
    return f"## {name}\n\n{_paragraphs(command.help)}\n\n```text\n{usage}\n```\n\n{body}"


# Names


def names_page() -> str:
    """Return the page on the names that a study file and the library know."""
    parts = [
        "# Names",
        "Everything that registers itself under a name, in this package. `cleanai list KIND` prints the same, with "
        "what your plug-ins add. [Contributing](../../CONTRIBUTING.md) shows how to add one in one file.",
    ]
    for kind in cli.KINDS:
        entries: registry.Registry[Any] = getattr(registry, kind.upper())
        columns: tuple[str, ...] = ("name", "summary")
        rows: list[tuple[str, ...]] = [(f"`{name}`", text) for name, text in entries.summaries().items()]
        if kind == "methods":
            options = {f"`{name}`": _options(entries.get(name)) for name in entries.names()}
            columns, rows = ("name", "summary", "options"), [(*row, options[row[0]]) for row in rows]
        parts.append(f"## {kind}\n\n" + table(columns, rows))
    return "\n\n".join(parts) + "\n"


def _options(method: Any) -> str:
    """Return the options of a method with their defaults, as `sweep.method_options` takes them."""
    parameters = inspect.signature(method).parameters.values()
    return ", ".join(f"`{item.name}={item.default!r}`" for item in parameters if item.default is not item.empty)
