"""Snapshots of a model's state, and rewinding to them under masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.recovery.regularize import apply_masks_

State = dict[str, Any]


def snapshot(model: nn.Module) -> State:
    """Return a copy of a model's state dict, to rewind to: taken at initialization, or after epoch k.

    Args:
        model: stays as it is.

    Raises:
        ArgumentError: an argument of another type.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1)
        >>> state = snapshot(net)
        >>> _ = net.weight.data.zero_()
        >>> bool(state["weight"].any())
        True
    """
    check_arguments(snapshot, locals())
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in model.state_dict().items()}


def rewind_(model: nn.Module, state: State, masks: Mapping[str, Tensor]) -> nn.Module:
    """Load a snapshot into a model in place and set masked elements to zero; return the model.

    Args:
        model: is changed.
        state: from `snapshot`.
        masks: {parameter: bool tensor of its shape, False where it becomes zero}.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: a mask has another shape than its parameter, or the model has no such parameter.
        RuntimeError: the snapshot is of another model.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1)
        >>> state = snapshot(net)
        >>> rewind_(net, state, {"weight": torch.tensor([[True, False]])}).weight[0, 1].item()
        0.0
    """
    check_arguments(rewind_, locals())
    model.load_state_dict(state)
    return apply_masks_(model, masks)
