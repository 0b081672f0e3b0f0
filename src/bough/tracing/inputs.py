"""Example inputs: the tensors in whatever holds them (dicts, outputs of an encoder, caches), and copies with others.

A model may write into what it is given, as it does into a cache of keys and values; so each run gets a copy.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_OPAQUE = (type, types.ModuleType, types.FunctionType, types.MethodType, nn.Module, str, bytes, int, float, complex)


def tensors_within(value: Any) -> Iterator[Tensor]:
    """Each tensor once, in containers and in the instance dictionaries of other objects."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if id(here) in seen or here is None or isinstance(here, _OPAQUE):
            continue
        seen.add(id(here))
        if isinstance(here, Tensor):
            yield here
        elif isinstance(here, Mapping):
            waiting.extend(reversed(list(here.values())))
        elif isinstance(here, (tuple, list, set, frozenset)):
            waiting.extend(reversed(list(here)))
        elif isinstance(getattr(here, "__dict__", None), dict):
            waiting.extend(reversed(list(vars(here).values())))


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy in which each tensor is what `change` makes of it; modules, and what can not be copied, are shared."""
    return _copied(value, {id(t): change(t) for t in tensors_within(value)})


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in (tuple, list):
        return type(value)(_copied(v, memo) for v in value)
    if type(value) is dict:
        return {k: _copied(v, memo) for k, v in value.items()}
    if isinstance(value, nn.Module):
        return value
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, a handle: the model is given it itself
        return value
