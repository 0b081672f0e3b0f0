"""Devices of models and optimizers, restored after a run has moved them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def common_device(model: nn.Module) -> torch.device | None:
    """Return the device of all parameters and buffers; None if they are on several devices, or there are none."""
    devices = {t.device for t in chain(model.parameters(), model.buffers())}
    return devices.pop() if len(devices) == 1 else None


def is_sharded(model: nn.Module) -> bool:
    """Return whether a parameter of the model is spread over processes."""
    return any(hasattr(p, "placements") for p in model.parameters())


@contextmanager
def restore_devices(*models: nn.Module, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Move the models back to their devices on exit, together with the state of the optimizer of their parameters.

    A model that was sharded meanwhile stays where its shards are.
    """
    before = [(model, common_device(model)) for model in models]
    try:
        yield
    finally:
        states = optimizer.state.items() if optimizer is not None else ()
        beside_parameter = [
            (p, state, k) for p, state in states for k, v in state.items() if isinstance(v, Tensor) and v.device == p.device
        ]
        for model, device in before:
            if device is not None and common_device(model) != device and not is_sharded(model):
                model.to(device)
        for p, state, k in beside_parameter:
            state[k] = state[k].to(p.device)
