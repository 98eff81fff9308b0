"""Attributes of objects given back when a change of them fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restored_on_error(*objects: object) -> Iterator[None]:
    """Give objects, as a model's modules, the attributes back that they had if an error is raised.

    Dictionaries and lists are given back with the items that they had. Tensors are not copied: a cut puts new ones in
    the place of those that it makes smaller, and changes none.
    """
    before = [
        {name: copy.copy(value) if type(value) in (dict, list) else value for name, value in vars(each).items()}
        for each in objects
    ]
    try:
        yield
    except BaseException:
        for each, attributes in zip(objects, before, strict=True):
            vars(each).clear()
            vars(each).update(attributes)
        raise
