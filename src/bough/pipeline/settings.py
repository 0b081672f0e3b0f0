"""Options of stages as plain values: a run is resumed only with the same ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from bough.recovery import Training


def plain_settings(value: Any) -> Any:
    """Return a value as numbers, text, lists and dicts: dataclasses by their fields, functions and classes by their names.

    Example:
        >>> from bough import Budget
        >>> plain_settings(Budget(macs="50%"))["macs"], plain_settings(len)
        ('50%', 'builtins.len')
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Training):
        return value.identity()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(plain_settings(k)): plain_settings(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_settings(v) for v in value]
    if isinstance(value, (Tensor, torch.dtype)):
        return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{f.name: plain_settings(getattr(value, f.name)) for f in fields(value)}}
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
