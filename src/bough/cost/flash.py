"""Bytes of constants that the C export for microcontrollers writes, as a closed form of the kept counts.

Weights are int8; each output channel of a convolution or linear layer has a bias and a multiplier, int32 each, and one array
of shifts, as long as the widest layer, serves all layers. A layer norm has a weight of int16 and a bias of int32 per element.
A function of one value is a table of 256 bytes, unless it is a clamp that the kernel before it applies itself; a softmax has
256 exponentials of int32, also in fused attention, whose scale is one more function. A batch norm whose input comes from a
convolution or linear layer alone is folded into that layer. Equal arrays are written once, so the emitted constants can be a
little smaller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from bough.graph import Graph, OpRecord, Polynomials, numel, total
from bough.spaces import Space

FLASH_PRECISION = "int8"  # of all that the export writes
_CHANNEL, _SHIFT, _NORMED, _TABLE, _EXPONENTIALS = 8.0, 4.0, 6.0, 256.0, 1024.0
_TAP = 6.0  # of a row or column of a bilinear resize: lower index, upper index and weight, int16 each
_LAYERS = {"convolution", "_convolution", "linear", "addmm"}
_CLAMPS = {"relu", "relu6", "hardtanh", "clamp"}
_UNTAGGED = {
    "hardswish",
    "hardsigmoid",
    "hardshrink",
    "celu",
    "log_sigmoid",
    "log_sigmoid_forward",
}  # torch tags them not as pointwise
_BINARY = {"add", "sub", "mul", "div", "rsub"}
_FUSING = _LAYERS | {"add", "sub", "mul"}

Terms = Iterator[tuple[float, tuple[Space, ...]]]


def flash_constants(graph: Graph) -> Polynomials:
    """Return the bytes of constants of the int8 export as a function of the groups' counts.

    Example:
        >>> import bough
        >>> graph = bough.trace(torch.nn.Linear(16, 4), torch.randn(1, 16))
        >>> bough.cost.Prices(flash=True).form(graph).cost().flash
        112
    """
    return total((g.atom for g in graph.groups), _terms(graph))


def _terms(graph: Graph) -> Terms:
    readers = Counter(value for op in graph.ops for value in op.inputs if value >= 0)
    makers: dict[int, OpRecord] = {}  # the op whose kernel writes a value, folded batch norms left out
    written: set[str] = set()
    layers: list[tuple[Space, ...]] = []
    for op in graph.ops:
        name = _name(op)
        before = makers.get(op.inputs[0]) if op.inputs and readers[op.inputs[0]] == 1 else None
        makers.update(dict.fromkeys(op.values, op))
        if name in _LAYERS:
            yield from _layer(op, name, written)
            layers.append(_channels(op, name))
        elif name.endswith("batch_norm") or name.startswith("_native_batch_norm") or name == "native_batch_norm":
            if before is not None and _takes_batch_norm(before):
                makers.update(dict.fromkeys(op.values, before))
            else:
                yield 1.0 + _CHANNEL, op.results[0][1:2]
                layers.append(op.results[0][1:2])
        elif name in ("layer_norm", "native_layer_norm"):
            yield _NORMED, op.results[0][-1:]
        elif name == "scaled_dot_product_attention":
            yield _TABLE + _EXPONENTIALS, ()
        elif name in ("softmax", "_softmax"):
            yield _EXPONENTIALS, ()
        elif name == "upsample_bilinear2d":
            sizes = zip(op.arguments[0][2:], op.results[0][2:], strict=True)
            yield from ((_TAP * after, ()) for _, after in {(a.size, b.size) for a, b in sizes})  # equal taps are written once
        elif is_pointwise(name) and not (name in _CLAMPS and before is not None and _name(before) in _FUSING):
            yield from _elementwise(op, name)
    if layers:
        yield _SHIFT, max(layers, key=numel)


def _layer(op: OpRecord, name: str, written: set[str]) -> Terms:
    place = 2 if name == "addmm" else 1
    if op.states[place] not in written:
        yield 1.0, op.arguments[place]
    written |= {op.states[place]} - {""}
    yield _CHANNEL, _channels(op, name)


def _channels(op: OpRecord, name: str) -> tuple[Space, ...]:
    return (op.results[0][1 if name.endswith("convolution") else -1],)


def _takes_batch_norm(op: OpRecord) -> bool:
    if _name(op) in ("linear", "addmm"):
        return len(op.results[0]) == 2
    if _name(op) not in _LAYERS:
        return False
    transposed, groups = op.detail[6], op.detail[8]
    return not transposed or groups == 1


def _elementwise(op: OpRecord, name: str) -> Terms:
    """Yield a table for a function of one value, or the elements of the constant operand of a sum or product."""
    varying = sum(not state for state in op.states)
    constants = [axes for axes, state in zip(op.arguments, op.states, strict=True) if state and numel(axes) > 1]
    if varying == 1 and not constants:
        yield _TABLE, ()
    elif name in _BINARY:
        yield from ((1.0, axes) for axes in constants)


def is_pointwise(name: str) -> bool:
    """Return whether an operator computes each element of its result from one place of its inputs."""
    if name in _UNTAGGED:
        return True
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())


def _name(op: OpRecord) -> str:
    return op.name.removesuffix("_")
