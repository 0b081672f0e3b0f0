"""Empty tensors as results on shapes alone, for ops of which torch's own meta functions are long Python.

A function that `on_shapes` registers checks what torch checks and gives an empty result, or `NotImplemented` for a form it
does not know: then torch is asked. It is only called with tensors of the meta device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def demand(holds: bool, *tensors: Tensor | None) -> None:
    if not holds:
        raise RuntimeError(f"shapes {', '.join(str(list(t.shape)) for t in tensors if t is not None)} do not fit together")


def like(x: Tensor) -> Tensor:
    """Return an empty tensor of the shape, type and order of dims of `x`: `torch.empty_like` is long Python on shapes."""
    if x.is_contiguous():
        return x.new_empty(x.shape)
    if not ordered(x):
        return torch.empty_like(x)
    strides, filled = [1] * x.dim(), 1
    for d in sorted(range(x.dim()), key=lambda d: (x.stride(d), -d)):
        strides[d] = filled
        filled *= x.shape[d]
    return x.new_empty_strided(x.shape, strides)


def ordered(x: Tensor) -> bool:
    """Tell whether the strides say in which order the dims stand in memory: no two are equal, none is zero."""
    return (
        x.numel() > 0
        and 0 not in x.stride()
        and len({s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1}) == sum(n > 1 for n in x.shape)
    )


def in_rows(x: Tensor) -> bool:
    """Tell whether torch takes the memory format of `x` for contiguous, not for channels last, where it joins tensors."""
    return x.is_contiguous() or x.dim() not in (4, 5) or x.stride(1) > x.stride(-1)


def broadcast(a: Tensor, b: Tensor) -> tuple[int, ...]:
    """Return the shape of both together: `torch.broadcast_shapes` is long Python, too."""
    if a.shape == b.shape:
        return tuple(a.shape)
    long, short = (a.shape, b.shape) if a.dim() >= b.dim() else (b.shape, a.shape)
    padded = (*(1,) * (len(long) - len(short)), *short)
    demand(all(n == m or 1 in (n, m) for n, m in zip(long, padded, strict=True)), a, b)
    return tuple(m if n == 1 else n for n, m in zip(long, padded, strict=True))
