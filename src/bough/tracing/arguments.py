"""Which axis an integer argument gives the size of.

One entry per function of torch's Python API that takes sizes; `meanings` yields (integer, space) pairs. A function
without an entry tells nothing: the replay check is the judge of what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bough.rules import Notes
from bough.spaces import Space
from bough.tracing.provenance import AxisSize, TracedInt

TypeOf = Callable[[Tensor], tuple[Space, ...]]
Pairs = Iterator[tuple[Any, Space]]


def _flat(values: tuple[Any, ...]) -> list[Any]:
    return list(values[0]) if len(values) == 1 and isinstance(values[0], (tuple, list)) else list(values)


def _sizes(skip: int) -> Callable[..., Pairs]:
    """The arguments after the first `skip` are the sizes of the result."""

    def pairs(of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes) -> Pairs:
        given = _flat(args[skip:] or tuple(kwargs[k] for k in ("size", "shape") if k in kwargs))
        axes = of(result)
        yield from zip(given[: len(axes)], axes, strict=False)

    return pairs


def _unflatten(of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes) -> Pairs:
    dim = (args[1] if len(args) > 1 else kwargs["dim"]) % args[0].dim()
    yield from zip(args[2] if len(args) > 2 else kwargs["sizes"], of(result)[dim:], strict=False)


def _split(of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes) -> Pairs:
    given = args[1] if len(args) > 1 else kwargs.get("split_size", kwargs.get("split_size_or_sections"))
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    pieces = given if isinstance(given, (tuple, list)) else [given] * len(result)
    for size, piece in zip(pieces, result, strict=False):
        yield size, of(piece)[dim]


def _narrow(of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes) -> Pairs:
    yield (args[3] if len(args) > 3 else kwargs["length"]), of(result)[args[1]]


def _getitem(of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes) -> Pairs:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if not all(isinstance(i, (slice, int, type(None), type(Ellipsis))) for i in index):
        return
    source, target = of(args[0]), of(result)
    if sum(isinstance(i, (slice, int)) for i in index) < args[0].dim() and Ellipsis not in index:
        index = (*index, Ellipsis)
    d = out = 0
    for i in index:
        if i is Ellipsis:
            rest = len(source) - d - sum(isinstance(j, (slice, int)) for j in index[index.index(Ellipsis) + 1 :])
            d, out = d + rest, out + rest
        elif i is None:
            out += 1
        elif isinstance(i, slice):
            if i.step in (None, 1) and i.start in (None, 0) and isinstance(i.stop, int) and i.stop > 0:
                yield i.stop, target[out]
            elif i.step in (None, 1) and i.stop is None and isinstance(i.start, int) and i.start < 0:
                yield -i.start, target[out]
            elif i.step in (None, 1) and all(isinstance(v, int) and v >= 0 for v in (i.start, i.stop)):
                yield i.stop - i.start, target[out]
            d, out = d + 1, out + 1
        else:
            d += 1


def _noted(position: int, name: str) -> Callable[..., Pairs]:
    def pairs(of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes) -> Pairs:
        if name in notes.integers:
            yield (args[position] if len(args) > position else kwargs.get(name)), notes.integers[name]

    return pairs


def _arange(of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes) -> Pairs:
    if len(args) == 1:
        yield args[0], of(result)[0]


def _one_hot(of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes) -> Pairs:
    yield (args[1] if len(args) > 1 else kwargs.get("num_classes")), of(result)[-1]


def _histc(of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes) -> Pairs:
    yield (args[1] if len(args) > 1 else kwargs.get("bins")), of(result)[0]


def _chunk(of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes) -> Pairs:
    """Chunks are of equal size, whatever the size."""
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    first = of(result[0])[dim]
    for piece in result[1:]:
        if of(piece)[dim].size == first.size:
            yield TracedInt(first.size, AxisSize(first)), of(piece)[dim]


MEANINGS: dict[Any, Callable[..., Pairs]] = {
    **dict.fromkeys((Tensor.view, Tensor.reshape, Tensor.expand), _sizes(1)),
    **dict.fromkeys((Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty), _sizes(1)),
    torch.reshape: _sizes(1),
    **dict.fromkeys((torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn), _sizes(0)),
    torch.full: lambda of, args, kwargs, result, notes: _sizes(0)(of, args[:1], kwargs, result, notes),
    Tensor.new_full: lambda of, args, kwargs, result, notes: _sizes(1)(of, args[:2], kwargs, result, notes),
    Tensor.unflatten: _unflatten,
    torch.unflatten: _unflatten,
    **dict.fromkeys((Tensor.split, torch.split, Tensor.split_with_sizes, torch.split_with_sizes), _split),
    **dict.fromkeys((Tensor.narrow, torch.narrow), _narrow),
    Tensor.__getitem__: _getitem,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _noted(6, "groups")),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _noted(6, "groups")),
    torch.group_norm: _noted(1, "num_groups"),
    **dict.fromkeys((Tensor.chunk, torch.chunk), _chunk),
    torch.arange: _arange,
    F.one_hot: _one_hot,
    **dict.fromkeys((torch.histc, Tensor.histc), _histc),
}  # fmt: skip


def meanings(
    func: Any, of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes
) -> list[tuple[Any, Space]]:
    """(integer argument, the space it gives the size of) for a call."""
    entry = MEANINGS.get(func)
    if entry is None:
        return []
    return [(i, s) for i, s in entry(of, args, kwargs, result, notes) if isinstance(i, int) and i == s.size]


def normalized_shape(args: tuple[Any, ...], notes: Notes) -> list[tuple[Any, Space]]:
    """The same for the normalized_shape of a whole layer_norm or rms_norm."""
    return [(n, notes.integers[f"normalized_shape.{i}"]) for i, n in enumerate(args[1])]
