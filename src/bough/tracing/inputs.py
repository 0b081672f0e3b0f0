"""Example inputs: copies with other tensors in whatever holds them (dicts, outputs of an encoder, caches).

A model may write into what it is given, as it does into a cache of keys and values; so each run gets a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bough.tracing.tree import tensors_within


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
