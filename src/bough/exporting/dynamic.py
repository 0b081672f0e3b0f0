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


def named_shapes(
    names: Sequence[str], dims: DynamicDims, runs: Sequence[tuple[Sequence[Tensor], Mapping[str, Tensor]]]
) -> dict[str, list[int | str]]:
    """Return the shapes of the outputs: a size that differs between runs is the name of the size in the inputs that it equals.

    Args:
        names, dims: of the inputs, as above.
        runs: (inputs, outputs by name) of each run. A size that differs and equals none of the inputs' is "varies".
    """
    sizes = [
        {symbol: t.shape[d] for name, t in zip(names, inputs, strict=True) for d, symbol in dims.get(name, {}).items()}
        for inputs, _ in runs
    ]

    def named(found: Sequence[int]) -> int | str:
        if len(set(found)) == 1:
            return found[0]
        return next((n for n in sizes[0] if [s[n] for s in sizes] == list(found)), "varies")

    outputs = [found for _, found in runs]
    return {name: [named(dim) for dim in zip(*(o[name].shape for o in outputs), strict=True)] for name in outputs[0]}
