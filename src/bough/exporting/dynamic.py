"""Dims of inputs that may vary in an exported file, and example inputs from which torch.export can see that they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bough.errors import ExportError, instead

DynamicDims = dict[str, dict[int, str]]
"""{input name: {dim: name of the size}}"""


def dynamic_dims(
    names: Sequence[str], tensors: Sequence[Tensor], batch: bool, given: Mapping[str, Mapping[int, str]] | None
) -> DynamicDims:
    """Return the dims that may vary.

    Args:
        names, tensors: of the example inputs.
        batch: whether dim 0 varies in all inputs where it has the size of the first input's dim 0.
        given: further dims by input name.

    Raises:
        ExportError: an unknown input or dim.
    """
    found: DynamicDims = {}
    if batch:
        first = next((len(t) for t in tensors if t.dim()), None)
        if first is None:
            raise ExportError("dynamic_batch=True: no example input has a dim, so there is no batch")
        found = {name: {0: "batch"} for name, t in zip(names, tensors, strict=True) if t.dim() and len(t) == first}
    ranks = {name: t.dim() for name, t in zip(names, tensors, strict=True)}
    for name, dims in (given or {}).items():
        if name not in ranks:
            raise ExportError(f"dynamic_shapes: {name!r} is no input of the model: {instead(name, names)}")
        for dim, symbol in dims.items():
            if not isinstance(dim, int) or not -ranks[name] <= dim < ranks[name] or not isinstance(symbol, str):
                raise ExportError(
                    f"dynamic_shapes={{{name!r}: {{{dim!r}: {symbol!r}}}}}: write a dim of its {ranks[name]} and a name"
                )
            found.setdefault(name, {})[dim % ranks[name]] = symbol
    return found


def specification(names: Sequence[str], dims: DynamicDims) -> dict[str, Any] | None:
    """Return `dims` as `torch.export` takes them for a `FlatModel`."""
    if not dims:
        return None
    return {"tensors": tuple(dict.fromkeys(dims.get(name, {}), torch.export.Dim.DYNAMIC) for name in names)}


def resized(names: Sequence[str], tensors: Sequence[Tensor], dims: DynamicDims, size: int | None = None) -> tuple[Tensor, ...]:
    """Return example inputs whose varying dims are of other sizes, by repeating the values.

    Args:
        names, tensors, dims: see above.
        size: of every varying dim; None makes those of size 1 as large as 2, since torch.export takes a size of 1 for fixed.
    """
    changed = []
    for name, tensor in zip(names, tensors, strict=True):
        for dim in dims.get(name, {}):
            wanted = size or max(tensor.shape[dim], 2)
            times = -(-wanted // max(tensor.shape[dim], 1))
            tensor = torch.cat([tensor] * times, dim).narrow(dim, 0, wanted)
        changed.append(tensor)
    return tuple(changed)
