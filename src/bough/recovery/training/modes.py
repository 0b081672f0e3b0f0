"""Training and evaluation modes of modules, saved and restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

Modes = dict[nn.Module, bool]
"""{module: whether it is in training mode}."""


def training_modes(model: nn.Module) -> Modes:
    """Return, for each module of a model, whether it is in training mode."""
    return {m: m.training for m in model.modules()}


@contextmanager
def restore_modes(model: nn.Module, inside: Mapping[nn.Module, bool] | None = None) -> Iterator[None]:
    """Restore the mode of each module on exit.

    Args:
        model: whose modes are restored.
        inside: modes to set until then; unchanged unless given.
    """
    before = training_modes(model)
    try:
        _set_modes(inside or {})
        yield
    finally:
        _set_modes(before)


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode
