"""Settings that identify a training run, as plain values: a run is resumed only with the same settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from torch.optim import Optimizer


def object_settings(instance: object) -> list[Any]:
    """Return the class of an object and the constructor arguments that it stores: [name, {argument: value}].

    Example:
        >>> from bough.recovery import Distillation
        >>> object_settings(Distillation(temperature=4.0))[1]["temperature"]
        4.0
    """
    arguments = inspect.signature(type(instance).__init__).parameters
    return [type(instance).__name__, _plain_values({n: getattr(instance, n) for n in arguments if hasattr(instance, n)})]


def optimizer_settings(optimizer: Optimizer, learning_rates: Sequence[float]) -> list[Any]:
    """Return the class of an optimizer and the options of its parameter groups: [name, [{option: value}]].

    Args:
        optimizer: of the run.
        learning_rates: one per group, before a schedule changes them.
    """
    groups = [
        _plain_values({k: v for k, v in group.items() if k != "params"} | {"lr": rate})
        for group, rate in zip(optimizer.param_groups, learning_rates, strict=True)
    ]
    return [type(optimizer).__name__, groups]


def _plain_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that have plain values."""
    return {name: plain for name, value in options.items() if (plain := _as_plain(value)) is not None}


def _as_plain(value: Any) -> Any:
    """Return numbers, strings and lists of them, and bough's dataclasses as text; None for everything else."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_as_plain(v) for v in value]
    return repr(value) if is_dataclass(value) and type(value).__module__.startswith("bough.") else None
