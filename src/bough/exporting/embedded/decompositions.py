"""Operators that are written with simpler ones before lowering: recurrent layers, step by step, and attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

aten = torch.ops.aten


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Return scaled dot-product attention as products and a softmax, without dropout."""
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = torch.matmul(query * factor, key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        mask = attn_mask if attn_mask.dtype != torch.bool else torch.where(attn_mask, 0.0, _LOW)
        weights = weights + mask.clamp(min=_LOW)
    return torch.matmul(weights.softmax(-1), value)


_LOW = -16.0  # what is added to scores that do not count: exp(-16) is no step of INT8, and a larger number makes steps coarse


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return {operator: what it is written as} for `ExportedProgram.run_decompositions`."""
    recurrent: dict[Any, Callable[..., Any]] = get_decompositions(
        [aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]
    )
    return {**recurrent, aten.scaled_dot_product_attention.default: attention}
