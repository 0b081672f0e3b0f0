"""What an elementwise op makes of units that are zero: found by running it on a few numbers.

Along an axis, some operands are zero at masked units and the others may be anything. The op is run, on the CPU, with
zeros for the former and every combination of some numbers for the latter. So its bounds, fill values and alphas count
as they are given, and no list of functions with f(0) = 0 has to be kept.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

_ANYTHING = (-150.0, -2.5, -0.3, 0.4, 1.7, 120.0)
_OVERWRITES = frozenset(("fill", "zero"))
_known: dict[Any, str] = {}
_KEPT = 4096  # verdicts remembered: numbers among the arguments, such as learned scales, differ from model to model


def at_zero(call: Any, tensors: list[Tensor], zeros: list[bool]) -> str:
    """ "zero" where the op gives zero whatever the other operands, "undefined" where it may give no number, else "other"."""
    if not any(zeros) and call.name.rstrip("_") not in _OVERWRITES:
        return "other"
    kinds = tuple((t.dtype, z) for t, z in zip(tensors, zeros, strict=True))
    plain = [_plain(a) for a in (*call.args, *(v for k, v in sorted(call.kwargs.items()) if k != "out"))]
    key = (call.func, kinds, repr(plain))
    if key not in _known:
        if len(_known) >= _KEPT:
            del _known[next(iter(_known))]
        _known[key] = _probed(call, tensors, zeros)
    return _known[key]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return "tensor"
    return int.__index__(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _probed(call: Any, tensors: list[Tensor], zeros: list[bool]) -> str:
    """The worst of what comes out; an op that can not be run here is "other"."""
    numbers = [(0.0, -0.0) if zero else (0.0, *_ANYTHING) for zero in zeros]
    rows = list(itertools.product(*numbers))
    apart = torch.tensor([all(z or v != 0 for z, v in zip(zeros, row, strict=True)) for row in rows])
    operands = iter([_column(t.dtype, [row[i] for row in rows]) for i, t in enumerate(tensors)])
    args = [_operand(a, operands) for a in call.args]
    kwargs = {k: _operand(v, operands) for k, v in call.kwargs.items() if k not in ("out", "device", "layout", "generator")}
    try:
        func = call.func.overloadpacket if "out" in call.kwargs else call.func
        result = func(*args, **kwargs)
    except Exception:  # it asks for more than numbers
        return "other"
    verdict = "zero"
    for value in result if isinstance(result, (tuple, list)) else (result,):
        value = value.expand(len(rows)) if value.dim() == 0 else value
        if not bool(torch.isfinite(value[apart]).all()):
            return "undefined"
        if bool((value[torch.isfinite(value)] != 0).any()):
            verdict = "other"
    return verdict


def _column(dtype: torch.dtype, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu").to(dtype)


def _operand(given: Any, operands: Any) -> Any:
    return next(operands) if isinstance(given, Tensor) else given
