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


def _like(x: Tensor) -> Tensor:
    """Return an empty tensor of the shape, type and order of dims of `x`: `torch.empty_like` is long Python on shapes."""
    if x.is_contiguous():
        return x.new_empty(x.shape)
    if not _ordered(x):
        return torch.empty_like(x)
    strides, filled = [1] * x.dim(), 1
    for d in sorted(range(x.dim()), key=lambda d: (x.stride(d), -d)):
        strides[d] = filled
        filled *= x.shape[d]
    return x.new_empty_strided(x.shape, strides)


def _ordered(x: Tensor) -> bool:
    """Tell whether the strides say in which order the dims stand in memory: no two are equal, none is zero."""
    return (
        x.numel() > 0
        and 0 not in x.stride()
        and len({s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1}) == sum(n > 1 for n in x.shape)
    )


def _rows(x: Tensor) -> bool:
    """Tell whether torch takes the memory format of `x` for contiguous, not for channels last, where it joins tensors."""
    return x.is_contiguous() or x.dim() not in (4, 5) or x.stride(1) > x.stride(-1)


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
    return x.new_empty(x.shape)


@_shape("batch_norm")
def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None, *rest: Any
) -> Any:
    per_channel = [t for t in (weight, bias, mean, variance) if t is not None]
    _demand(all(t.shape == (x.shape[1],) for t in per_channel), x, *per_channel)
    return _like(x)


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
    return r.x.new_empty((*r.x.shape[:-1], width)), *(_like(s) for s in r.states)


@_shape("convolution")
def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int,
) -> Any:  # fmt: skip
    n = weight.dim() - 2
    given = (stride, padding, dilation, output_padding)
    plain = x.dim() == n + 2 and x.is_contiguous() and weight.is_contiguous() and all(len(g) == n for g in given)
    if transposed or not plain or x.dtype != weight.dtype:
        return NotImplemented
    outputs = weight.shape[0]
    _demand(x.shape[1] == weight.shape[1] * groups and outputs % groups == 0, x, weight)
    _demand(bias is None or bias.shape == (outputs,), weight, bias)
    wide = [(x.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) - 1) // stride[i] + 1 for i in range(n)]
    _demand(all(size > 0 for size in wide), x, weight)
    return x.new_empty((x.shape[0], outputs, *wide))


@_shape("max_pool2d_with_indices")
def _max_pool(x: Tensor, kernel: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,), ceil: bool = False) -> Any:
    if ceil or x.dim() != 4 or not x.is_contiguous() or not x.is_floating_point():
        return NotImplemented
    (k, s, p, d) = (list(g) * (2 // len(g)) for g in (kernel, stride or kernel, padding, dilation))
    if any(len(g) != 2 for g in (k, s, p, d)) or any(2 * p[i] > k[i] for i in range(2)):
        return NotImplemented
    wide = [(x.shape[i + 2] + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i in range(2)]
    _demand(all(size > 0 for size in wide), x)
    shape = (*x.shape[:2], *wide)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


@_shape("cat")
def _cat(tensors: Any, dim: int = 0) -> Any:
    joined = [t for t in tensors if t.shape != (0,)]  # torch joins such a tensor to those of any dims: an empty cache
    first = joined[0] if joined else tensors[0]
    if not joined or not -first.dim() <= dim < first.dim() or {(t.dtype, _rows(t)) for t in tensors} != {(first.dtype, True)}:
        return NotImplemented
    dim %= first.dim()
    _demand(len({(t.dim(), *t.shape[:dim], None, *t.shape[dim + 1 :]) for t in joined}) == 1, *tensors)
    return first.new_empty((*first.shape[:dim], sum(t.shape[dim] for t in joined), *first.shape[dim + 1 :]))


@_shape("mean", "sum", "amax", "amin")
def _reduction(x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
    if options or not x.is_floating_point() or not isinstance(dim, (int, list, tuple)) or dim == [] or dim == ():
        return NotImplemented
    gone = [d % x.dim() if -x.dim() <= d < x.dim() else -1 for d in ([dim] if isinstance(dim, int) else dim)]
    if -1 in gone or len(set(gone)) < len(gone) or not x.numel() or not x.is_contiguous():
        return NotImplemented
    return x.new_empty([1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone])


@_shape("contiguous")
def _contiguous(x: Tensor, **options: Any) -> Any:
    if options:
        return NotImplemented
    return x if x.is_contiguous() else x.new_empty(x.shape)


@_shape(
    "relu",
    "gelu",
    "silu",
    "sigmoid",
    "tanh",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "neg",
    "exp",
    "rsqrt",
    "sqrt",
    "dropout",
    "sin",
    "cos",
    "pow",
)
def _unary(x: Any, *scalars: Any, **options: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point() or any(isinstance(s, (Tensor, complex)) for s in scalars):
        return NotImplemented
    return _like(x)


@_shape("_softmax", "_log_softmax")
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    known = x.is_contiguous() and -x.dim() <= dim < x.dim() and not half_to_float
    return x.new_empty(x.shape) if known else NotImplemented


@_shape("add", "sub", "mul", "div")
def _binary(a: Any, b: Any, **options: Any) -> Any:
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return NotImplemented
    if isinstance(b, (int, float)):
        return _like(a)
    if not isinstance(b, Tensor) or a.dtype != b.dtype:
        return NotImplemented
    if a.is_contiguous() and b.is_contiguous():
        return a.new_empty(_broadcast(a, b))
    if a.stride() == b.stride() and a.shape == b.shape:
        return _like(a)
    return _like(a) if _ordered(a) and _broadcast(a, b) == tuple(a.shape) else NotImplemented


def _broadcast(a: Tensor, b: Tensor) -> tuple[int, ...]:
    """Return the shape of both together: `torch.broadcast_shapes` is long Python, too."""
    if a.shape == b.shape:
        return tuple(a.shape)
    long, short = (a.shape, b.shape) if a.dim() >= b.dim() else (b.shape, a.shape)
    padded = (*(1,) * (len(long) - len(short)), *short)
    _demand(all(n == m or 1 in (n, m) for n, m in zip(long, padded, strict=True)), a, b)
    return tuple(m if n == 1 else n for n, m in zip(long, padded, strict=True))


@_shape("add_", "sub_", "mul_", "div_")
def _in_place(a: Any, b: Any, **options: Any) -> Any:
    fits = isinstance(b, (int, float)) or (isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape)
    return a if a.is_floating_point() and fits else NotImplemented
