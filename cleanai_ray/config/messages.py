"""Error messages on study files: one sentence with the field, the value found and what is allowed.

What is allowed is read from the types of the sections, so that a new field needs no message of its own.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ValidationError

from cleanai_ray.config.sections import Section
from cleanai_ray.errors import PruningError

S = TypeVar("S", bound=Section)

_MAX_VALUE_LENGTH = 200


def describe(error: ValidationError, root: type[Section]) -> str:
    """Return a sentence on the first error. A misspelt key comes before the key that is missing because of it.

    Args:
        error: The errors that pydantic found.
        root: The section that was validated.
    """
    errors = error.errors(include_url=False)
    first = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
    if first["type"] == "extra_forbidden":
        return _describe_unknown_key(first, root)
    path, annotation = _resolve(first["loc"], root)
    field = _join(path)
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return message if not field or field in message else f"{field}: {message}"
    if first["type"] == "missing":
        if isinstance(path[-1], str):
            return f"{field} is missing; needed: {allowed(annotation)}"
        path, annotation = _resolve(first["loc"][:-1], root)
        field = _join(path)
    text = allowed(annotation)
    if first["type"] == "finite_number":
        text = text.replace("a number", "a finite number")
    if first["loc"][-1] == "[key]":
        return f"{field} has a key that is {show(first['input'])}; allowed: {text}"
    return f"{field} is {show(first['input'])}; allowed: {text}"


def checked(section: type[S], **values: Any) -> S:
    """Return a section with some values.

    Raises:
        PruningError: When a value is not allowed; the message names it.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise PruningError(describe(error, section)) from None


def show(value: Any) -> str:
    """Return a value in YAML's flow style, cut off if it is very long."""
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE_LENGTH else text[:_MAX_VALUE_LENGTH] + "..."


def name_among(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? allowed: x, y" for a name that is unknown."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}allowed: {', '.join(known)}"


def allowed(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """Return in words which values a type allows, for instance "a number above 0 and below 1".

    Args:
        annotation: A type as the sections use them: scalars, literals, lists, mappings, sections and unions.
        constraints: Further bounds from annotated_types.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return allowed(arguments[0], [*_constraints(arguments[1:]), *constraints])
    if origin in (Union, types.UnionType):
        in_order = sorted(arguments, key=lambda item: item is not type(None))
        return " or ".join(allowed(item, constraints) for item in in_order)
    if origin is Literal:
        return " or ".join(show(value) for value in arguments)
    if origin is tuple:
        return _allowed_list(arguments, constraints)
    if origin is dict:
        return "a mapping" if arguments[1] is Any else f"a mapping whose values are each {allowed(arguments[1])}"
    if annotation in (int, float):
        return _allowed_number(annotation, constraints)
    if _is_section(annotation):
        return f"a mapping with keys among {', '.join(annotation.model_fields)}"
    words = {str: _allowed_text(constraints), bool: "true or false", type(None): "null"}
    return words.get(annotation, "something else")


def _allowed_list(arguments: tuple[Any, ...], constraints: Sequence[Any]) -> str:
    entry = allowed(arguments[0])
    if arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} entries, each {entry}"
    at_least = next((f" of at least {item.min_length} entry" for item in constraints if isinstance(item, MinLen)), "")
    return f"a list{at_least}, each entry {entry}"


def _allowed_number(annotation: type, constraints: Sequence[Any]) -> str:
    bounds = []
    for item in constraints:
        if isinstance(item, Gt):
            bounds.append(f"of at least {cast(int, item.gt) + 1}" if annotation is int else f"above {item.gt:g}")
        elif isinstance(item, Ge):
            bounds.append(f"of at least {item.ge:g}")
        elif isinstance(item, Lt):
            bounds.append(f"below {item.lt:g}")
        elif isinstance(item, Le):
            bounds.append(f"at most {item.le:g}")
    return " ".join(["an integer" if annotation is int else "a number", " and ".join(bounds)]).rstrip()


def _allowed_text(constraints: Sequence[Any]) -> str:
    pattern = next((item.pattern for item in constraints if getattr(item, "pattern", None)), None)
    if pattern is not None:
        return f"text that matches {pattern}"
    return "text that is not empty" if any(isinstance(item, MinLen) for item in constraints) else "text"


def _constraints(metadata: Iterable[Any]) -> list[Any]:
    """Return bounds, with those inside a pydantic FieldInfo unpacked."""
    return [item for entry in metadata for item in (getattr(entry, "metadata", None) or [entry])]


def _resolve(location: Sequence[int | str], root: type[Section]) -> tuple[list[int | str], Any]:
    """Return the keys of a location and the type there, without the parts that name a branch of a union."""
    annotation: Any = root
    path: list[int | str] = []
    for part in location:
        container = _container(annotation)
        if container is None:
            break
        if _is_section(container):
            if re.search(rf"\b{container.__name__}\]?$", str(part)):  # the branch of a union, which is no key
                continue
            info = container.model_fields.get(str(part))
            annotation = Any if info is None else Annotated[(info.annotation, *info.metadata, None)]
        elif get_origin(container) is dict:
            annotation = get_args(container)[1]
        else:
            entries = get_args(container)
            annotation = entries[0] if entries[-1] is Ellipsis else entries[int(part)]
        path.append(part)
    if location and location[-1] == "[key]":
        return path[:-1], str
    return path, annotation


def _container(annotation: Any) -> Any:
    """Return the section, list or mapping type of an annotation, whether or not it also allows null."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        others = [item for item in get_args(annotation) if item is not type(None) and get_origin(item) is not Literal]
        return _container(others[0]) if len(others) == 1 else None
    return annotation if _is_section(annotation) or get_origin(annotation) in (tuple, dict) else None


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    # In Python 3.10, tuple[int, ...] is an instance of type, of which issubclass knows nothing.
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Section)


def _describe_unknown_key(error: Mapping[str, Any], root: type[Section]) -> str:
    *parents, key = error["loc"]
    path, annotation = _resolve(parents, root)
    section = _container(annotation)
    return f"unknown key '{_join([*path, key])}'; {name_among(str(key), section.model_fields)}"


def _join(path: Iterable[int | str]) -> str:
    """Join keys into one, like `sweep.budgets[0].macs`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
