"""The state of a model that a training run saves, including buffers that `state_dict` omits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def full_state(model: nn.Module) -> dict[str, Any]:
    """Return the model's `state_dict` together with its non-persistent buffers, which a resumed run needs too."""
    state = dict(model.state_dict())
    return state | {n: b for n, b in model.named_buffers() if n not in state}


def load_full_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state that `full_state` returned.

    Raises:
        RuntimeError: as `load_state_dict` does.
    """
    persistent = set(model.state_dict())
    others = {n: b for n, b in model.named_buffers() if n not in persistent}
    model.load_state_dict({n: v for n, v in state.items() if n not in others})
    with torch.no_grad():
        for name, buffer in others.items():
            if name in state:
                buffer.copy_(state[name])
