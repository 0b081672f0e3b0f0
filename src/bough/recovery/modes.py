"""Training and evaluation mode, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

Modes = dict[nn.Module, bool]


def modes_of(model: nn.Module) -> Modes:
    """Which modules are in training mode."""
    return {m: m.training for m in model.modules()}


@contextmanager
def modes_kept(model: nn.Module, inside: Mapping[nn.Module, bool] | None = None) -> Iterator[None]:
    """Puts each module back into the mode it was in; `inside`: the modes until then."""
    before = modes_of(model)
    try:
        _put(inside or {})
        yield
    finally:
        _put(before)


def _put(modes: Mapping[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode
