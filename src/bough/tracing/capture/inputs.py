"""Example inputs: copies with other tensors in whatever holds them (dicts, outputs of an encoder, caches).

A model may write into what it is given, as it does into a cache of keys and values; so each run gets a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bough.calls import Call
from bough.graph import RecordedRun
from bough.tracing.capture.tree import tensors_within


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy in which each tensor is what `change` makes of it; modules, and what can not be copied, are shared."""
    return _copied(value, {id(t): change(t) for t in tensors_within(value)})


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in (tuple, list):
        return type(value)(_copied(v, memo) for v in value)
    if type(value) is dict:
        return {k: _copied(v, memo) for k, v in value.items()}
    if isinstance(value, nn.Module):
        return value
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, a handle: the model is given it itself
        return value


def call_of(calls: Sequence[Call], recorded: RecordedRun) -> Call:
    """Return the call that was made in a recorded run."""
    call = calls[recorded.call]
    return doubled(call) if recorded.doubled else call


def doubled(call: Call) -> Call:
    """Return a call with each sample twice: tensors as long as the first one are repeated along their first dim.

    Batch norms in training mode take no batch of one where each channel has one value.
    """
    given = call.args, call.kwargs
    length = next((t.shape[0] for t in tensors_within(given) if t.dim()), 0)

    def repeated(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == length else tensor

    return call.given(*with_tensors(given, repeated))
