"""The C statement that runs each op: a kernel call, its parameter structs as constants beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bough.exporting.embedded import program as p
from bough.exporting.embedded.arena import Arena
from bough.exporting.embedded.c_constants import Constants
from bough.exporting.embedded.overlap import overlaps
from bough.exporting.embedded.scratch import Scratch, place_scratch


@dataclass(slots=True)
class Writer:
    """Names of tensors in C, and what the statements need: constants, parameter structs, kernels, the scratch of each op."""

    program: p.Program
    arena: Arena
    constants: Constants = field(default_factory=Constants)
    structs: list[str] = field(default_factory=list)
    kernels: set[str] = field(default_factory=set)
    places: dict[int, str] = field(default_factory=dict)
    _names: dict[tuple[str, str], str] = field(default_factory=dict)
    scratch: tuple[Scratch, Scratch] = field(init=False)

    def __post_init__(self) -> None:
        self.scratch = (
            place_scratch(self.program, self.arena, vector=False), place_scratch(self.program, self.arena, vector=True)
        )  # fmt: skip
        for kind, ports in (("inputs", self.program.inputs), ("outputs", self.program.outputs)):
            for i, port in enumerate(ports):
                self.places[id(port.tensor)] = f"{kind}[{i}]"

    def pointer(self, tensor: p.Tensor) -> str:
        """Return the C expression of a tensor's first byte."""
        if tensor.constant is not None:
            return self.constants.add(f"constant_{len(self.constants)}", tensor.constant)
        known = self.places.get(id(tensor))
        return known if known is not None else f"arena.bytes + {self.arena.offsets[id(tensor)]}"

    def struct(self, kind: str, name: str, text: str) -> str:
        """Define a constant struct, unless there is an equal one, and return its address."""
        known = self._names.setdefault((kind, text), name)
        if known == name:
            self.structs.append(f"static const {kind} {name} = {text};")
        return f"&{known}"


def statement(writer: Writer, op: p.Op, index: int) -> str:
    """Return the C statement of one op; where CMSIS-NN needs working memory, a block that defines its context."""
    text = _STATEMENTS[type(op)](writer, op, f"op{index}")
    if "&context" not in text:
        return text
    places = [str(number) for scratch in writer.scratch for number in scratch.places.get(index, (0, 0))]
    if places == ["0"] * 4:
        return text.replace("&context", "&no_scratch")
    lines = [f"const cmsis_nn_context context = SCRATCH({', '.join(places)});"]
    if isinstance(op, p.FullyConnected):
        outputs, depth = op.weight.shape
        lines.append(f"KERNEL_SUMS({depth}, {outputs}, op{index}_weight, {_offset(op.inputs[0])}, op{index}_bias);")
    return "{\n" + "".join(f"        {line}\n" for line in (*lines, text)) + "    }"


def _call(writer: Writer, function: str, arguments: Sequence[Any], *, checked: bool = True) -> str:
    writer.kernels.add(function)
    call = f"{function}({', '.join(map(str, arguments))})"
    return f"status |= {call};" if checked else f"{call};"


def _dims(writer: Writer, name: str, dims: p.Dims) -> str:
    n, h, w, c = dims
    return writer.struct("cmsis_nn_dims", name, f"{{{n}, {h}, {w}, {c}}}")


def _tile(values: p.Pair) -> str:
    return f"{{{values[1]}, {values[0]}}}"


def _per_channel(writer: Writer, name: str, factors: p.Requantization) -> str:
    common = writer.program.shifts
    multiplier = writer.constants.add(f"{name}_multiplier", factors.multiplier)
    if np.array_equal(factors.shift, common[: len(factors.shift)]):
        shift = writer.constants.add("shifts", common)
    else:
        shift = writer.constants.add(f"{name}_shift", factors.shift)
    return writer.struct(
        "cmsis_nn_per_channel_quant_params", f"{name}_quant", f"{{(int32_t *){multiplier}, (int32_t *){shift}}}"
    )


def _offset(tensor: p.Tensor) -> int:
    return -tensor.quantization.zero_point


def direction(arena: Arena, op: p.Op) -> str | None:
    """Return "0" or "1" (backward) where an op must run row by row since its output lies over its input; else None."""
    source, target = op.inputs[0], op.output
    if id(source) not in arena.offsets or id(target) not in arena.offsets or 0 not in overlaps(op):
        return None
    start, other = arena.offsets[id(target)], arena.offsets[id(source)]
    if start + target.size <= other or other + source.size <= start:
        return None
    return "0" if start <= other - overlaps(op)[0].forward else "1"


def _conv(writer: Writer, op: p.Conv, name: str) -> str:
    w, r = op.window, op.range
    multiple = f"{op.out_dims[3] // op.in_dims[3]}, " if op.depthwise else ""
    params = writer.struct(
        "cmsis_nn_dw_conv_params" if op.depthwise else "cmsis_nn_conv_params",
        f"{name}_params",
        f"{{{_offset(op.inputs[0])}, {r.offset}, {multiple}{_tile(w.stride)}, {_tile(w.padding)}, {_tile(w.dilation)}, "
        f"{{{r.low}, {r.high}}}}}",
    )
    n, kh, kw, c = op.weight.shape
    arguments = [
        "&context", params, _per_channel(writer, name, op.factors),
        _dims(writer, f"{name}_in", op.in_dims), writer.pointer(op.inputs[0]),
        _dims(writer, f"{name}_filter", (n, kh, kw, c)), writer.constants.add(f"{name}_weight", op.weight),
        _dims(writer, f"{name}_bias_dims", (1, 1, 1, op.out_dims[3])), writer.constants.add(f"{name}_bias", op.bias),
        _dims(writer, f"{name}_out", op.out_dims), writer.pointer(op.output),
    ]  # fmt: skip
    whole = "arm_depthwise_conv_wrapper_s8" if op.depthwise else "arm_convolve_wrapper_s8"
    rows = "bough_depthwise_rows_s8" if op.depthwise else "bough_convolve_rows_s8"
    return _by_rows(writer, op, whole, rows, arguments)


def _by_rows(writer: Writer, op: p.Op, whole: str, rows: str, arguments: list[str]) -> str:
    way = direction(writer.arena, op)
    if way is None:
        return _call(writer, whole, arguments)
    writer.kernels.add(whole)
    return _call(writer, rows, [*arguments, way])


def _fully_connected(writer: Writer, op: p.FullyConnected, name: str) -> str:
    outputs, depth = op.weight.shape
    params = writer.struct(
        "cmsis_nn_fc_params",
        f"{name}_params",
        f"{{{_offset(op.inputs[0])}, 0, {op.range.offset}, {{{op.range.low}, {op.range.high}}}}}",
    )
    weight = writer.constants.add(f"{name}_weight", op.weight)
    arguments = [
        "&context", params, _per_channel(writer, name, op.factors), _dims(writer, f"{name}_in", (op.rows, 1, 1, depth)),
        writer.pointer(op.inputs[0]), _dims(writer, f"{name}_filter", (depth, 1, 1, outputs)), weight,
        _dims(writer, f"{name}_bias_dims", (1, 1, 1, outputs)), writer.constants.add(f"{name}_bias", op.bias),
        _dims(writer, f"{name}_out", (op.rows, 1, 1, outputs)), writer.pointer(op.output),
    ]  # fmt: skip
    return _call(writer, "arm_fully_connected_per_channel_s8", arguments)


def _repeated(writer: Writer, op: p.Add | p.Mul, arguments: Callable[[str, str, str, int], list[Any]], kernel: str) -> str:
    """Call a kernel once, or for each stretch of the first operand that the second is repeated along."""
    first, second, target = writer.pointer(op.inputs[0]), writer.pointer(op.inputs[1]), writer.pointer(op.output)
    size = op.output.size // op.repeats
    if op.repeats == 1:
        return _call(writer, kernel, arguments(first, second, target, size))
    call = _call(writer, kernel, arguments(f"{first} + i * {size}", second, f"{target} + i * {size}", size))
    return f"for (int32_t i = 0; i < {op.repeats}; i++) {{\n        {call}\n    }}"


def _add(writer: Writer, op: p.Add, name: str) -> str:
    m, s, r = op.factors.multiplier, op.factors.shift, op.range
    return _repeated(
        writer, op,
        lambda a, b, out, size: [
            a, b, _offset(op.inputs[0]), m[0], s[0], _offset(op.inputs[1]), m[1], s[1], op.left_shift, out, r.offset,
            m[2], s[2], r.low, r.high, size,
        ],
        "arm_elementwise_add_s8",
    )  # fmt: skip


def _mul(writer: Writer, op: p.Mul, name: str) -> str:
    m, s, r = op.factors.multiplier, op.factors.shift, op.range
    return _repeated(
        writer, op,
        lambda a, b, out, size: [
            a, b, _offset(op.inputs[0]), _offset(op.inputs[1]), out, r.offset, m[0], s[0], r.low, r.high, size,
        ],
        "arm_elementwise_mul_s8",
    )  # fmt: skip


def _pool(writer: Writer, op: p.Pool, name: str) -> str:
    w = op.window
    params = writer.struct(
        "cmsis_nn_pool_params",
        f"{name}_params",
        f"{{{_tile(w.stride)}, {_tile(w.padding)}, {{{op.range.low}, {op.range.high}}}}}",
    )
    arguments = [
        "&context", params, _dims(writer, f"{name}_in", op.in_dims), writer.pointer(op.inputs[0]),
        _dims(writer, f"{name}_filter", (1, *w.kernel, 1)), _dims(writer, f"{name}_out", op.out_dims),
        writer.pointer(op.output),
    ]  # fmt: skip
    if op.maximum:
        return _by_rows(writer, op, "arm_max_pool_s8", "bough_max_pool_rows_s8", arguments)
    return _by_rows(writer, op, "arm_avgpool_s8", "bough_avgpool_rows_s8", arguments)


def _mean(writer: Writer, op: p.Mean, name: str) -> str:
    text = (
        f"{{{op.outer}, {op.count}, {op.inner}, {_offset(op.inputs[0])}, {op.range.offset}, {op.factors.multiplier[0]}, "
        f"{op.factors.shift[0]}}}"
    )
    arguments = [writer.struct("bough_mean", f"{name}_mean", text), writer.pointer(op.inputs[0]), writer.pointer(op.output)]
    return _call(writer, "bough_mean_s8", arguments, checked=False)


def _lookup(writer: Writer, op: p.Lookup, name: str) -> str:
    table = writer.constants.add(f"{name}_table", op.table)
    arguments = [writer.pointer(op.inputs[0]), table, op.output.size, writer.pointer(op.output)]
    return _call(writer, "bough_lookup_s8", arguments, checked=False)


def _copy(writer: Writer, op: p.Copy, name: str) -> str:
    def row(values: Sequence[int]) -> str:
        return f"{{{', '.join(map(str, values))}}}"

    text = f"{{{len(op.dims)}, {row(op.dims)}, {row(op.in_strides)}, {row(op.out_strides)}, {op.start_in}, {op.start_out}}}"
    arguments = [writer.struct("bough_copy", f"{name}_copy", text), writer.pointer(op.inputs[0]), writer.pointer(op.output)]
    return _call(writer, "bough_copy_s8", arguments, checked=False)


def _fill(writer: Writer, op: p.Fill, name: str) -> str:
    return f"memset({writer.pointer(op.output)}, {op.value}, {op.output.size});"


def _softmax(writer: Writer, op: p.Softmax, name: str) -> str:
    table = writer.constants.add(f"{name}_table", op.table)
    arguments = [writer.pointer(op.inputs[0]), op.rows, op.columns, table, writer.pointer(op.output)]
    return _call(writer, "bough_softmax_s8", arguments, checked=False)


def _resize(writer: Writer, op: p.Resize, name: str) -> str:
    rows, columns = writer.constants.add(f"{name}_rows", op.rows), writer.constants.add(f"{name}_columns", op.columns)
    arguments = [
        _dims(writer, f"{name}_in", op.in_dims), writer.pointer(op.inputs[0]), rows, columns,
        _dims(writer, f"{name}_out", op.out_dims), writer.pointer(op.output),
    ]  # fmt: skip
    return _call(writer, "bough_resize_s8", arguments, checked=False)


def _matmul(writer: Writer, op: p.MatMul, name: str) -> str:
    def row(values: Sequence[int]) -> str:
        return f"{{{', '.join(map(str, values))}}}"

    text = (
        f"{{{row(op.batches)}, {op.rows}, {op.columns}, {op.depth}, {row(op.left_strides)}, {row(op.right_strides)}, "
        f"{_offset(op.inputs[0])}, {_offset(op.inputs[1])}, {op.range.offset}, {op.factors.multiplier[0]}, "
        f"{op.factors.shift[0]}, {op.range.low}, {op.range.high}}}"
    )
    pointers = [writer.pointer(t) for t in (*op.inputs, op.output)]
    return _call(writer, "bough_matmul_s8", [writer.struct("bough_matmul", f"{name}_matmul", text), *pointers], checked=False)


def _layer_norm(writer: Writer, op: p.LayerNorm, name: str) -> str:
    weight, bias = writer.constants.add(f"{name}_weight", op.weight), writer.constants.add(f"{name}_bias", op.bias)
    text = (
        f"{{{op.rows}, {op.columns}, INT64_C({op.epsilon}), {weight}, {bias}, {op.range.offset}, {op.factors.multiplier[0]}, "
        f"{op.factors.shift[0]}, {op.range.low}, {op.range.high}}}"
    )
    struct = writer.struct("bough_layer_norm", f"{name}_norm", text)
    return _call(
        writer, "bough_layer_norm_s8", [struct, writer.pointer(op.inputs[0]), writer.pointer(op.output)], checked=False
    )  # fmt: skip


_STATEMENTS: dict[type[p.Op], Callable[..., str]] = {
    p.Conv: _conv, p.FullyConnected: _fully_connected, p.Add: _add, p.Mul: _mul, p.Pool: _pool, p.Mean: _mean,
    p.Lookup: _lookup, p.Copy: _copy, p.Fill: _fill, p.Softmax: _softmax, p.Resize: _resize,
    p.MatMul: _matmul, p.LayerNorm: _layer_norm,
}  # fmt: skip
