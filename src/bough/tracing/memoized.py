"""Results that a model's methods remember (`functools.lru_cache`): they must neither enter a recorded run nor outlive it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_Memoized = type(functools.lru_cache(lambda: None))


@contextmanager
def forgetting(model: nn.Module) -> Iterator[None]:
    """While inside, the methods of the modules' classes remember nothing from before; afterwards, nothing from inside."""
    found = [
        m for cls in {type(m) for m in model.modules()} for base in cls.__mro__ for f in vars(base).values() for m in _in(f)
    ]
    for memoized in found:
        memoized.cache_clear()
    try:
        yield
    finally:
        for memoized in found:
            memoized.cache_clear()


def _in(function: Any) -> Iterator[Any]:
    """The memoized functions that a method is, or is wrapped around."""
    function = getattr(function, "__func__", function)  # of static and class methods
    if isinstance(function, _Memoized):
        yield function
    for cell in getattr(function, "__closure__", None) or ():
        try:
            inside = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if isinstance(inside, _Memoized):
            yield inside
