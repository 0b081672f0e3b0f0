"""Which axis an integer argument gives the size of.

One entry per function of torch's Python API that takes sizes: the names of its parameters, and a function that yields
(integer, space) pairs from the arguments by position. A function without an entry gives nothing: the replay check is the
judge of what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bough.ops import Notes
from bough.spaces import Space
from bough.tracing.capture.provenance import AxisSize, TracedInt

TypeOf = Callable[[Tensor], tuple[Space, ...]]
Pairs = Iterator[tuple[Any, Space]]


def _flat(values: tuple[Any, ...]) -> list[Any]:
    return list(values[0]) if len(values) == 1 and isinstance(values[0], (tuple, list)) else list(values)


def _sizes(skip: int) -> Callable[..., Pairs]:
    """The arguments after the first `skip` are the sizes of the result."""

    def pairs(of: TypeOf, args: tuple[Any, ...], result: Any, notes: Notes) -> Pairs:
        given = _flat(args[skip:])
        axes = of(result)
        yield from zip(given[: len(axes)], axes, strict=False)

    return pairs


def _unflatten(of: TypeOf, args: tuple[Any, ...], result: Any, notes: Notes) -> Pairs:
    yield from zip(args[2], of(result)[args[1] % args[0].dim() :], strict=False)


def _split(of: TypeOf, args: tuple[Any, ...], result: Any, notes: Notes) -> Pairs:
    given, dim = args[1], _at(args, 2, 0)
    pieces = given if isinstance(given, (tuple, list)) else [given] * len(result)
    for size, piece in zip(pieces, result, strict=False):
        yield size, of(piece)[dim]


def _narrow(of: TypeOf, args: tuple[Any, ...], result: Any, notes: Notes) -> Pairs:
    yield args[3], of(result)[args[1]]


def _getitem(of: TypeOf, args: tuple[Any, ...], result: Any, notes: Notes) -> Pairs:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if not all(isinstance(i, (slice, int, type(None), type(Ellipsis))) for i in index):
        return
    source, target = of(args[0]), of(result)
    if sum(isinstance(i, (slice, int)) for i in index) < args[0].dim() and Ellipsis not in index:
        index = (*index, Ellipsis)
    starts = [i.start if isinstance(i, slice) else i for i in index if isinstance(i, (slice, int))]
    traced = [s for s in starts if isinstance(s, TracedInt)]
    if "start" in notes.integers and len(traced) == 1 and sum(bool(s) for s in starts) == 1:
        yield traced[0], notes.integers["start"]
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
    def pairs(of: TypeOf, args: tuple[Any, ...], result: Any, notes: Notes) -> Pairs:
        if name in notes.integers:
            yield _at(args, position), notes.integers[name]

    return pairs


def _arange(of: TypeOf, args: tuple[Any, ...], result: Any, notes: Notes) -> Pairs:
    if len(args) == 1:
        yield args[0], of(result)[0]


def _one_hot(of: TypeOf, args: tuple[Any, ...], result: Any, notes: Notes) -> Pairs:
    yield _at(args, 1), of(result)[-1]


def _histc(of: TypeOf, args: tuple[Any, ...], result: Any, notes: Notes) -> Pairs:
    yield _at(args, 1), of(result)[0]


def _chunk(of: TypeOf, args: tuple[Any, ...], result: Any, notes: Notes) -> Pairs:
    """Chunks are of equal size, whatever the size."""
    dim = _at(args, 2, 0)
    first = of(result[0])[dim]
    for piece in result[1:]:
        if of(piece)[dim].size == first.size:
            yield TracedInt(first.size, AxisSize(first)), of(piece)[dim]


def _arguments_before(skip: int, sizes: Callable[..., Pairs]) -> Callable[..., Pairs]:
    """The same of the arguments before the first `skip` alone."""
    return lambda of, args, result, notes: sizes(of, args[:skip], result, notes)


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_SPLIT = ("tensor|input|self", "split_size|split_sizes|split_size_or_sections", "dim")
Entry = tuple[tuple[str, ...], Callable[..., Pairs]]
"""The parameters, with | between names that they have in several functions, and what their integers are."""
MEANINGS: dict[Any, Entry] = {
    **dict.fromkeys((Tensor.view, Tensor.reshape, Tensor.expand), (("self", "size|shape"), _sizes(1))),
    **dict.fromkeys((Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty), (("self", "size"), _sizes(1))),
    torch.reshape: (("input", "shape"), _sizes(1)),
    **dict.fromkeys((torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn), (("size",), _sizes(0))),
    torch.full: (("size", "fill_value"), _arguments_before(1, _sizes(0))),
    Tensor.new_full: (("self", "size", "fill_value"), _arguments_before(2, _sizes(1))),
    **dict.fromkeys((Tensor.unflatten, torch.unflatten), (("input", "dim", "sizes"), _unflatten)),
    **dict.fromkeys((Tensor.split, torch.split, Tensor.split_with_sizes, torch.split_with_sizes), (_SPLIT, _split)),
    **dict.fromkeys((Tensor.narrow, torch.narrow), (("input", "dim", "start", "length"), _narrow)),
    Tensor.__getitem__: (("self", "index"), _getitem),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), (_CONVOLUTION, _noted(6, "groups"))),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), (_TRANSPOSED, _noted(6, "groups"))
    ),
    torch.group_norm: (("input", "num_groups", "weight", "bias", "eps"), _noted(1, "num_groups")),
    **dict.fromkeys((torch.channel_shuffle, torch.native_channel_shuffle), (("input", "groups"), _noted(1, "groups"))),
    **dict.fromkeys((Tensor.chunk, torch.chunk), (("input", "chunks", "dim"), _chunk)),
    torch.arange: (("end",), _arange),
    F.one_hot: (("input|tensor", "num_classes"), _one_hot),
    **dict.fromkeys((torch.histc, Tensor.histc), (("input", "bins", "min", "max"), _histc)),
}  # fmt: skip


def meanings(
    func: Any, of: TypeOf, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, notes: Notes
) -> list[tuple[Any, Space]]:
    """(integer argument, the space it gives the size of) for a call."""
    if func not in MEANINGS:
        return []
    parameters, entry = MEANINGS[func]
    pairs = entry(of, by_position(parameters, args, kwargs), result, notes)
    return [(i, s) for i, s in pairs if isinstance(i, int) and i == s.size]


def by_position(parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Return the arguments by position up to the last that is given; None for those between that are not given.

    Example:
        >>> by_position(("tensor|input", "start", "length"), ("x",), {"length": 3, "out": None})
        ('x', None, 3)
    """
    given = [next((kwargs[n] for n in p.split("|") if n in kwargs), None) for p in parameters[len(args) :]]
    while given and given[-1] is None:
        given.pop()
    return (*args, *given)


def _at(args: tuple[Any, ...], position: int, default: Any = None) -> Any:
    return args[position] if len(args) > position and args[position] is not None else default


def normalized_shape(args: tuple[Any, ...], notes: Notes) -> list[tuple[Any, Space]]:
    """The same for the normalized_shape of a whole layer_norm or rms_norm."""
    return [(n, notes.integers[f"normalized_shape.{i}"]) for i, n in enumerate(args[1])]
