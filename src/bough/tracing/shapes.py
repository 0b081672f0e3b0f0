"""The results of the commonest ops on shapes alone, where torch's own meta functions are long Python.

Each function checks what torch checks and gives an empty result, or `NotImplemented` for a form it does not know:
then torch is asked. Only called with tensors of the meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bough.rules.recurrent import Recurrence

Shape = Callable[..., Any]
SHAPES: dict[str, Shape] = {}


def _shape(*names: str) -> Callable[[Shape], Shape]:
    def register(function: Shape) -> Shape:
        SHAPES.update(dict.fromkeys(names, function))
        return function

    return register


def _demand(holds: bool, *tensors: Tensor | None) -> None:
    if not holds:
        raise RuntimeError(f"shapes {', '.join(str(list(t.shape)) for t in tensors if t is not None)} do not fit together")


@_shape("linear")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if weight.dim() != 2 or x.dtype != weight.dtype:
        return NotImplemented
    _demand(x.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1]), x, weight, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@_shape("_grouped_mm")
def _grouped_mm(x: Tensor, weight: Tensor, offs: Tensor | None = None, *rest: Any, **more: Any) -> Any:
    if x.dim() != 2 or weight.dim() != 3 or offs is None:
        return NotImplemented
    _demand(x.shape[1] == weight.shape[1] and offs.shape == weight.shape[:1], x, weight, offs)
    return x.new_empty((x.shape[0], weight.shape[2]))


@_shape("layer_norm", "rms_norm")
def _layer_norm(x: Tensor, shape: Any, weight: Tensor | None = None, bias: Any = None, *rest: Any, **more: Any) -> Any:
    last = x.shape[x.dim() - len(shape) :]
    affine = [t for t in (weight, bias) if isinstance(t, Tensor)]
    _demand(tuple(shape) == tuple(last) and all(t.shape == last for t in affine), x, *affine)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_shape("batch_norm")
def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None, *rest: Any
) -> Any:
    per_channel = [t for t in (weight, bias, mean, variance) if t is not None]
    _demand(all(t.shape == (x.shape[1],) for t in per_channel), x, *per_channel)
    return torch.empty_like(x)


@_shape("scaled_dot_product_attention")
def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if q.dim() != k.dim() or q.dim() != v.dim() or q.dim() < 3:
        return NotImplemented
    batch = q.shape[:-2]
    if enable_gqa:
        heads = q.shape[-3]
        _demand(k.shape[-3] > 0 and heads % k.shape[-3] == 0 and k.shape[-3] == v.shape[-3], q, k, v)
    elif not batch == k.shape[:-2] == v.shape[:-2]:
        batch = torch.broadcast_shapes(batch, k.shape[:-2], v.shape[:-2])
    _demand(q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2], q, k, v)
    if attn_mask is not None:
        scores = (*batch, q.shape[-2], k.shape[-2])
        _demand(torch.broadcast_shapes(scores, attn_mask.shape) == scores, q, k, attn_mask)
    return q.new_empty((*batch, q.shape[-2], v.shape[-1]))


@_shape("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(*args: Any, **named: Any) -> Any:
    if named:
        return NotImplemented
    r = Recurrence.of(args)
    hidden, cells = r.states[0].shape[-1], r.states[-1].shape[-1]
    batch = r.states[0].shape[1] if r.packed else r.x.shape[0 if r.batch_first else 1]
    for state in r.states:
        _demand(state.shape[:2] == (r.layers * r.directions, batch), r.x, state)
    _demand(r.projected == (hidden != cells), *r.states)
    gates, width = r.params[0].shape[0] // cells, r.x.shape[-1]
    for layer in r.weights():
        for w in layer:
            _demand(w.inputs.shape == (gates * cells, width), r.x, w.inputs, *r.states)
            _demand(w.hidden.shape == (gates * cells, hidden), w.hidden, *r.states)
            _demand(all(b.shape == (gates * cells,) for b in w.biases), *w.biases, *r.states)
            _demand(w.projection is None or w.projection.shape == (hidden, cells), w.projection, *r.states)
        width = hidden * r.directions
    return r.x.new_empty((*r.x.shape[:-1], width)), *(torch.empty_like(s) for s in r.states)


@_shape(
    "relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "neg", "exp", "rsqrt", "sqrt", "dropout"
)
def _unary(x: Tensor, *scalars: Any, **options: Any) -> Any:
    return torch.empty_like(x) if x.is_floating_point() else NotImplemented


@_shape("add", "sub", "mul", "div")
def _binary(a: Any, b: Any, **options: Any) -> Any:
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return NotImplemented
    if isinstance(b, (int, float)):
        return torch.empty_like(a)
    if not isinstance(b, Tensor) or a.dtype != b.dtype:
        return NotImplemented
    if a.shape == b.shape and a.stride() == b.stride():
        return torch.empty_like(a)
    if a.is_contiguous() and b.is_contiguous():
        return a.new_empty(torch.broadcast_shapes(a.shape, b.shape))
    return NotImplemented
