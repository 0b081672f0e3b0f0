"""Models and optimizers, put back on the device where they were: what they are used with next is there, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def home(model: nn.Module) -> torch.device | None:
    """The device of all parameters and buffers; None where they are on several, or there are none."""
    devices = {t.device for t in chain(model.parameters(), model.buffers())}
    return devices.pop() if len(devices) == 1 else None


@contextmanager
def homes_kept(*models: nn.Module, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Takes the models back to their devices at the end, with what the optimizer holds beside their parameters."""
    before = [(model, home(model)) for model in models]
    try:
        yield
    finally:
        states = optimizer.state.items() if optimizer is not None else ()
        beside = [
            (p, state, k) for p, state in states for k, v in state.items() if isinstance(v, Tensor) and v.device == p.device
        ]
        for model, device in before:
            if device is not None and home(model) != device:
                model.to(device)
        for p, state, k in beside:
            state[k] = state[k].to(p.device)
