"""From a model to a float graph with quantization parameters: export, functionalize, and take out quantize and dequantize ops.

A model that PT2E has quantized holds pairs of `quantized_decomposed` ops. Each pair is taken out of the graph; its scale and
zero point stay as the parameters of the value between. A float model gives the same graph without parameters.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from bough.cutting.program import exported_program
from bough.errors import ExportError
from bough.exporting.embedded.decompositions import decompositions
from bough.exporting.embedded.program import Quantization

_QUANTIZE, _DEQUANTIZE, _DEQUANTIZE_CHANNELS = "quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel"
_NOTHING = {  # at inference these return their first argument
    "clone", "dropout", "contiguous", "detach", "detach_", "alias", "lift_fresh_copy", "_to_copy", "to",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """Weights that are quantized already: integers, and a scale per output channel (one in all if per tensor)."""

    values: NDArray[np.int8]
    scales: NDArray[np.float64]


@dataclass(slots=True)
class Reading:
    """A functional graph of ATen ops without quantize and dequantize ops.

    Attributes:
        module: runs the graph in float.
        constants: value of each node that depends on no input.
        weights: integers and scales of constants that are quantized already.
        parameters: quantization parameters of values, where the graph has them.
    """

    module: fx.GraphModule
    constants: dict[fx.Node, Tensor] = field(default_factory=dict)
    weights: dict[fx.Node, QuantizedWeight] = field(default_factory=dict)
    parameters: dict[fx.Node, Quantization] = field(default_factory=dict)

    @property
    def nodes(self) -> list[fx.Node]:
        """The ops, in order."""
        return [n for n in self.module.graph.nodes if n.op == "call_function" and n not in self.constants]


def op_name(node: fx.Node) -> str:
    """Return the name of an ATen op without its overload, such as "conv2d"."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet, "__name__", getattr(node.target, "__name__", node.target)))


def argument(node: fx.Node, index: int, name: str = "", default: Any = None) -> Any:
    """Return an argument of an op by place or name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def where(node: fx.Node) -> str:
    """Return module path and source line of a node, for messages."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((str(entry[0]) for entry in reversed(list(stack.values()))), "") if stack else ""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip().startswith("File ")]
    own = [line for line in lines if "/torch/" not in line.replace("\\", "/")]
    line = (own or lines or [""])[-1]
    module = f"module {path!r}" if path else "the model itself"
    return f"{module}, {line}" if line else module


def read(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Reading:
    """Return the graph of a model at the shapes of its example inputs.

    Args:
        model: a float model in eval mode, or a module that `convert_pt2e` returned.
        inputs: positional and keyword arguments; their shapes are those that the program is made for.

    Raises:
        ExportError: torch.export can not make a program of the model.
    """
    with torch.no_grad():
        module = exported_program(model, inputs).run_decompositions(decompositions()).module()
    reading = Reading(module)
    _drop_checks(module.graph)
    _fold_constants(reading)
    _drop_identities(reading)
    _take_out_quantization(reading)
    module.graph.eliminate_dead_code()
    module.recompile()
    live = set(module.graph.nodes)
    for table in (reading.constants, reading.weights, reading.parameters):
        for node in [n for n in table if n not in live]:
            del table[node]
    return reading


def _drop_checks(graph: fx.Graph) -> None:
    """Erase the guards and assertions of torch.export; the shapes are fixed here."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_module" or "_assert" in str(node.target):
            graph.erase_node(node)


def _fold_constants(reading: Reading) -> None:
    """Evaluate what depends on parameters and buffers only, but for dequantized weights, whose integers are kept."""
    with torch.no_grad():
        for node in reading.module.graph.nodes:
            if node.op == "get_attr":
                reading.constants[node] = operator.attrgetter(node.target)(reading.module).detach()
            elif node.op == "call_function" and _is_constant(reading, node):
                args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: reading.constants[n])
                result = node.target(*args, **kwargs)
                if isinstance(result, Tensor):
                    reading.constants[node] = result
                    if op_name(node) in (_DEQUANTIZE, _DEQUANTIZE_CHANNELS):
                        reading.weights[node] = _weight(args)


def _is_constant(reading: Reading, node: fx.Node) -> bool:
    """Tell whether all inputs are constants; ops without inputs (`arange`, `zeros`) are."""
    return op_name(node) != "getitem" and all(n in reading.constants for n in node.all_input_nodes)


def _weight(args: Sequence[Any]) -> QuantizedWeight:
    values, scales, zeros = args[0], torch.as_tensor(args[1]), torch.as_tensor(args[2])
    integers = values.to(torch.int32)
    if zeros.any():
        shape = [1] * values.dim()
        shape[int(args[3]) if zeros.numel() > 1 else 0] = zeros.numel()
        integers = integers - zeros.reshape(shape)
    if integers.abs().max() > 127 + int(integers.min() == -128):
        raise ExportError("a weight is quantized with a zero point that does not fit int8: quantize weights symmetrically")
    return QuantizedWeight(integers.to(torch.int8).numpy(), np.atleast_1d(scales.double().numpy()))


def _drop_identities(reading: Reading) -> None:
    """Let the consumers of ops that only pass their input on read the input."""
    for node in reading.nodes:
        first = node.args[0] if node.args else None
        if op_name(node) in _NOTHING and isinstance(first, fx.Node):
            node.replace_all_uses_with(first)
        elif op_name(node) in ("view", "_unsafe_view"):
            node.target = torch.ops.aten.reshape.default  # the copy that made the input contiguous may be gone


def _take_out_quantization(reading: Reading) -> None:
    """Replace quantize and dequantize pairs by parameters of the value that is quantized."""
    graph = reading.module.graph
    for node in reading.nodes:
        if op_name(node) != _QUANTIZE:
            continue
        value, quantization = node.args[0], _quantization(reading, node)
        if not isinstance(value, fx.Node):
            continue
        if reading.parameters.get(value, quantization) != quantization:
            with graph.inserting_before(node):
                other = graph.call_function(requantized, (value,))
                other.meta = dict(value.meta)
            value = other
        reading.parameters[value] = quantization
        for user in list(node.users):
            if op_name(user) == _DEQUANTIZE:
                user.replace_all_uses_with(value)
            elif user.op == "output":
                user.replace_input_with(node, value)


def requantized(value: Tensor) -> Tensor:
    """Stand for a value that is stored with other quantization parameters; in float it is the value itself."""
    return value


def _quantization(reading: Reading, node: fx.Node) -> Quantization:
    """Return the parameters of a quantize op as those of int8 values; unsigned ones are moved down by 128."""
    numbers = [reading.constants[a] if isinstance(a, fx.Node) else a for a in (argument(node, 1), argument(node, 2))]
    scale, zero_point = float(numbers[0]), int(numbers[1])
    dtype = argument(node, 5, "dtype")
    if dtype not in (torch.int8, torch.uint8):
        raise ExportError(f"{where(node)}: activations are quantized to {dtype}; the microcontroller's kernels take int8")
    return Quantization(scale, zero_point - (128 if dtype == torch.uint8 else 0))
