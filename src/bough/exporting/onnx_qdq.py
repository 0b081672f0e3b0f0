"""INT8 programs as ONNX: QuantizeLinear and DequantizeLinear nodes, integers unsigned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bough.errors import ExportError

_SHIFT = 128  # from int8 to uint8
_SAFE = 64  # 2 * 255 * 64 is less than 2^15


def translations() -> dict[Any, Any]:
    """Return {operator of PT2E: function that writes it as ONNX}; empty where no quantized program can exist."""
    library = getattr(torch.ops, "quantized_decomposed", None)
    if library is None or not hasattr(library, "quantize_per_tensor"):
        return {}
    from onnxscript import opset18 as op

    def quantize(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int) -> Any:
        _require_whole_range(quant_min, quant_max)
        return op.QuantizeLinear(x, _scale(op, scale), _zero(op, zero_point))

    def dequantize(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int, **options: Any) -> Any:
        return op.DequantizeLinear(x, _scale(op, scale), _zero(op, zero_point))

    def dequantize_channels(
        x: Any, scales: Any, zero_points: Any, axis: int, quant_min: int, quant_max: int, dtype: int, **options: Any
    ) -> Any:
        return op.DequantizeLinear(x, scales, op.Cast(zero_points, to=3), axis=axis)  # 3: int8

    return {
        library.quantize_per_tensor.default: quantize,
        library.dequantize_per_tensor.default: dequantize,
        library.dequantize_per_channel.default: dequantize_channels,
    }


def _require_whole_range(quant_min: int, quant_max: int) -> None:
    if (quant_min, quant_max) != (-128, 127):
        raise ExportError(f"an activation is quantized to {quant_min}...{quant_max}, and ONNX has int8, -128...127, only")


def _scale(op: Any, scale: float) -> Any:
    return op.Constant(value_float=float(scale))


def _zero(op: Any, zero_point: int) -> Any:
    from onnx import numpy_helper

    return op.Constant(value=numpy_helper.from_array(np.array(zero_point, np.int8)))


def use_unsigned_integers(model: Any) -> None:
    """Make int8 activations and weights uint8, in place: 128 is added to integers and zero points, so the values stay.

    onnxruntime's kernels for x86 processors without VNNI add two products of uint8 activations and int8 weights in 16 bits,
    which overflow; products of uint8 with uint8 do not. Weights of at most 64 can not overflow and stay as they are.
    """
    for node in list(model.graph.all_nodes()):
        if node.op_type == "QuantizeLinear":
            _shift_activation(model, node)
        elif node.op_type == "DequantizeLinear":
            _shift_weight(model, node)
    _drop_clipping(model)


def _shift_activation(model: Any, node: Any) -> None:
    zero = _constant(node.inputs[2])
    if zero is None or zero.dtype != np.int8:
        return
    import onnx_ir as ir

    value = _added(model, f"{node.outputs[0].name}_zero_point", _shifted(zero))
    node.replace_input_with(2, value)
    node.outputs[0].dtype = ir.DataType.UINT8
    for reader, _ in list(node.outputs[0].uses()):
        if reader.op_type != "DequantizeLinear":
            raise ExportError(f"{reader.op_type} reads integers, which only DequantizeLinear can")
        reader.replace_input_with(2, value)


def _shift_weight(model: Any, node: Any) -> None:
    weight, zero = _constant(node.inputs[0]), _constant(node.inputs[2])
    if weight is None or zero is None or weight.dtype != np.int8 or np.abs(weight.astype(np.int32)).max(initial=0) <= _SAFE:
        return
    name = node.outputs[0].name
    node.replace_input_with(0, _added(model, f"{name}_weight", _shifted(weight)))
    node.replace_input_with(2, _added(model, f"{name}_zero_point", _shifted(zero)))


def _drop_clipping(model: Any) -> None:
    """Remove each Relu that only a QuantizeLinear with zero point 0 reads: rounding to uint8 clips at 0 as well."""
    for node in list(model.graph.all_nodes()):
        before = node.inputs[0].producer() if node.op_type == "QuantizeLinear" else None
        if before is None or before.op_type != "Relu" or len(list(before.outputs[0].uses())) > 1:
            continue
        zero = _constant(node.inputs[2])
        if zero is not None and zero.dtype == np.uint8 and not zero.any() and not before.outputs[0].is_graph_output():
            node.replace_input_with(0, before.inputs[0])
            model.graph.remove(before, safe=True)


def _constant(value: Any) -> np.ndarray | None:
    """Return the array of a value that does not depend on the inputs; None for others."""
    import onnx_ir as ir

    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def _shifted(array: np.ndarray) -> np.ndarray:
    return np.asarray(array.astype(np.int32) + _SHIFT, np.uint8)


def _added(model: Any, name: str, array: np.ndarray) -> Any:
    """Return a new constant of the graph."""
    import onnx_ir as ir

    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.initializers[name] = value
    return value
