"""What tells one training run from another: the settings of what takes part in it, as plain values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from torch.optim import Optimizer


def settings(part: Any) -> list[Any]:
    """An object's class and what it was made with, as far as it keeps that: [name, {argument: value}].

    Example:
        >>> from bough.recovery import Distillation
        >>> settings(Distillation(temperature=4.0))[1]["temperature"]
        4.0
    """
    arguments = inspect.signature(type(part).__init__).parameters
    return [type(part).__name__, _known({n: getattr(part, n) for n in arguments if hasattr(part, n)})]


def optimizer_settings(optimizer: Optimizer, rates: Sequence[float]) -> list[Any]:
    """An optimizer's class, and of each of its groups the options. `rates`: of the groups, before a schedule changes them."""
    groups = [
        _known({k: v for k, v in group.items() if k != "params"} | {"lr": rate})
        for group, rate in zip(optimizer.param_groups, rates, strict=True)
    ]
    return [type(optimizer).__name__, groups]


def _known(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain for name, value in options.items() if (plain := _plain(value)) is not None}


def _plain(value: Any) -> Any:
    """Numbers and strings, also in lists, and frozen records of them; None for all else."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return repr(value) if is_dataclass(value) and type(value).__module__.startswith("bough.") else None
