"""What a training run saves of a model, and how it is put back; see `bough.storage.state` for the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bough.storage import read_state, write_state

__all__ = ["read_state", "restore", "whole_state", "write_state"]


def whole_state(model: nn.Module) -> dict[str, Any]:
    """Return the model's `state_dict`, and the buffers that it leaves out as not persistent: a run goes on from them, too."""
    state = dict(model.state_dict())
    return state | {n: b for n, b in model.named_buffers() if n not in state}


def restore(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put a `whole_state` back.

    Raises:
        RuntimeError: as `load_state_dict` does.
    """
    own = set(model.state_dict())
    others = {n: b for n, b in model.named_buffers() if n not in own}
    model.load_state_dict({n: v for n, v in state.items() if n not in others})
    with torch.no_grad():
        for name, buffer in others.items():
            if name in state:
                buffer.copy_(state[name])
