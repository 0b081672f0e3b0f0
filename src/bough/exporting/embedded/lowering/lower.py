"""Lower a whole graph: refuse what is unknown before anything is made, then op by op."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor as TorchTensor
from torch import fx

from bough.errors import ExportError
from bough.exporting.embedded.folding import CONVOLUTIONS
from bough.exporting.embedded.lowering import layout
from bough.exporting.embedded.lowering.context import LOWERINGS, Context, Value
from bough.exporting.embedded.program import Port, Program, Tensor
from bough.exporting.embedded.reading import Reading, op_name, where

_SPATIAL = CONVOLUTIONS | {
    "max_pool1d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
    "_native_batch_norm_legit_no_training",
}  # fmt: skip
_PASSING = {"relu", "relu6", "hardtanh", "hardswish", "silu", "pad", "constant_pad_nd", "mul", "add", "sub", "div"}


def lower(reading: Reading) -> tuple[Program, dict[fx.Node, Value]]:
    """Return (the integer program of a graph whose values have quantization parameters, where each value of the graph lies).

    Raises:
        ExportError: an operator that has no lowering; the message lists all of them with module and line.
    """
    unknown = [n for n in reading.nodes if op_name(n) not in LOWERINGS]
    if unknown:
        listed = "\n  ".join(f"{op_name(n)} in {where(n)}" for n in unknown[:12])
        more = f"\n  and {len(unknown) - 12} more" if len(unknown) > 12 else ""
        raise ExportError(f"{len(unknown)} operators can not be exported to a microcontroller:\n  {listed}{more}")
    context = Context(reading)
    for node in reading.module.graph.nodes:
        if node.op == "placeholder":
            _add_input(context, node)
    done: set[fx.Node] = set()
    for node in reading.nodes:
        if node in done:
            continue
        result = LOWERINGS[op_name(node)](context, node)
        last = context.fused.get(node, node)
        done.add(last)
        if isinstance(result, Value):
            result = context.requantized(last, result, reading.parameters.get(last))
        context.values[last] = result
    for output in _outputs(reading):
        _add_output(context, output)
    return context.program, {node: value for node, value in context.values.items() if isinstance(value, Value)}


def _add_input(context: Context, node: fx.Node) -> None:
    meta = node.meta["val"]
    if not isinstance(meta, TorchTensor) or not meta.is_floating_point():
        raise ExportError(f"input {node.target!r} is not a float tensor: inputs of a microcontroller are quantized to int8")
    shape = tuple(int(s) for s in meta.shape)
    order = layout.channels_last(len(shape)) if len(shape) in (3, 4) and _spatial(node) else layout.row_major(len(shape))
    quantization = context.reading.parameters[node]
    tensor = Tensor(str(node.target), int(meta.numel()), quantization)
    context.values[node] = Value(tensor, shape, order)
    context.program.inputs.append(Port(str(node.target), tensor, shape, order))


def _spatial(node: fx.Node) -> bool:
    """Tell whether the first op that cares for the order of memory is a spatial one."""
    for user in node.users:
        if op_name(user) in _SPATIAL:
            return True
        if op_name(user) in _PASSING:
            return _spatial(user)
    return False


def _outputs(reading: Reading) -> Iterator[fx.Node]:
    output = next(n for n in reading.module.graph.nodes if n.op == "output")
    yield from output.all_input_nodes


def _add_output(context: Context, node: fx.Node) -> None:
    value = context.value(node)
    taken = {id(port.tensor) for port in (*context.program.inputs, *context.program.outputs)}
    if value.columns is not None or value.tensor.constant is not None or id(value.tensor) in taken:
        rank = len(value.shape)
        value = context.moved(node, replace(value), layout.row_major(rank))
    context.program.outputs.append(Port(str(node.name), value.tensor, value.shape, value.order))
