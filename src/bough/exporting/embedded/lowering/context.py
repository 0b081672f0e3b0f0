"""What a lowering function works with: values in memory, constants, and the program to which it adds ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from bough.errors import ExportError
from bough.exporting.embedded.fixed_point import dequantized, quantized
from bough.exporting.embedded.folding import clamp_bounds, fused_activations
from bough.exporting.embedded.lowering import layout
from bough.exporting.embedded.observing import parameters
from bough.exporting.embedded.program import Copy, Dims, Lookup, Program, Quantization, Tensor
from bough.exporting.embedded.reading import Reading, op_name, where

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A logical tensor and how it lies in an int8 buffer.

    Attributes:
        shape: the logical shape, as in PyTorch.
        order: logical dimension at each position in memory.
        columns: of a flattened tensor that was not moved: the logical index of each element in memory.
    """

    tensor: Tensor
    shape: Shape
    order: Shape
    columns: NDArray[np.int64] | None = None

    @property
    def memory_shape(self) -> Shape:
        """Sizes in the order of memory."""
        return tuple(self.shape[d] for d in self.order)

    @property
    def quantization(self) -> Quantization:
        """Scale and zero point."""
        return self.tensor.quantization


Lowering = Callable[["Context", fx.Node], Value | tuple[Value, ...]]
LOWERINGS: dict[str, Lowering] = {}
"""Lowering function of each operator, by its ATen name without overload."""


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Register a function as the lowering of the operators of these names."""

    def register(function: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(names, function))
        return function

    return register


class Context:
    """The values that are lowered so far, and the program."""

    def __init__(self, reading: Reading) -> None:
        self.reading, self.program = reading, Program()
        self.values: dict[fx.Node, Value | tuple[Value, ...]] = {}
        self.fused = fused_activations(reading)

    def refuse(self, node: fx.Node, reason: str) -> ExportError:
        """Return the error for an operator that can not be lowered; raise it."""
        return ExportError(f"{op_name(node)} in {where(node)}: {reason}")

    def value(self, node: Any) -> Value:
        """Return the value of a node; constants become int8 tensors of the program."""
        if node in self.values:
            found = self.values[node]
            if isinstance(found, Value):
                return found
        if node in self.reading.constants:
            return self._constant(node)
        raise ExportError(f"{node} is not a tensor that the program computes")

    def _constant(self, node: fx.Node) -> Value:
        values = self.reading.constants[node].float().numpy()
        given = self.reading.parameters.get(node)
        quantization = given or parameters(float(values.min(initial=0.0)), float(values.max(initial=0.0)))
        tensor = Tensor(str(node.name), values.size, quantization, quantized(values, quantization).reshape(-1))
        self.values[node] = Value(tensor, tuple(values.shape), layout.row_major(values.ndim))
        return self.values[node]  # type: ignore[return-value]

    def array(self, node: Any) -> NDArray[np.float64] | None:
        """Return a constant as an array; None for None."""
        if node is None:
            return None
        if node not in self.reading.constants:
            raise ExportError(f"{node} is computed from the inputs; the kernel needs a constant")
        return self.reading.constants[node].double().numpy()

    def result(self, node: fx.Node) -> tuple[Quantization, float, float]:
        """Return parameters of an op's result and the real bounds of the activation that is fused into it."""
        last = self.fused.get(node, node)
        quantization = self.reading.parameters.get(last)
        if quantization is None:
            raise self.refuse(last, "it has no quantization parameters")
        low, high = clamp_bounds(last) if last is not node else (-math.inf, math.inf)
        return quantization, low, high

    def tensor(self, node: fx.Node, size: int, quantization: Quantization) -> Tensor:
        """Make a tensor that an op will write."""
        return Tensor(str(node.name), size, quantization)

    def source(self, node: fx.Node) -> str:
        """Return module and operator, for comments in the C code."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]) if stack else ""
        return f"{path}: {op_name(node)}" if path else op_name(node)

    def arranged(self, node: fx.Node, value: Value, order: Shape) -> Value:
        """Return a value in an order of memory, moved there if it lies otherwise."""
        if value.columns is None and layout.same_memory(value.order, order, value.shape):
            return replace(value, order=order)
        return self.moved(node, value, order)

    def moved(self, node: fx.Node, value: Value, order: Shape) -> Value:
        """Copy a value into another order of memory."""
        if value.columns is not None:
            raise self.refuse(node, "its input is a flattened tensor that only linear layers read; use reshape once")
        if value.tensor.constant is not None:
            array = value.tensor.constant.reshape(value.memory_shape)
            array = array.transpose([value.order.index(d) for d in order])
            tensor = Tensor(
                f"{value.tensor.name}_moved", array.size, value.quantization, np.ascontiguousarray(array).reshape(-1)
            )
            return Value(tensor, value.shape, order)
        tensor = self.tensor(node, value.tensor.size, value.quantization)
        result = Value(tensor, value.shape, order)
        self.copy(node, value, result, (0,) * len(value.shape), value.shape)
        return result

    def copy(self, node: fx.Node, source: Value, target: Value, starts: Sequence[int], sizes: Sequence[int]) -> None:
        """Copy a source of logical sizes `sizes` to the place `starts` of a target, in the target's order of memory."""
        steps_in, steps_out = layout.strides(source.order, source.shape), layout.strides(target.order, target.shape)
        start = sum(s * step for s, step in zip(starts, steps_out, strict=True))
        self.copy_strided(
            node, source.tensor, target.tensor, [(sizes[d], steps_in[d], steps_out[d]) for d in target.order], (0, start)
        )

    def copy_strided(
        self, node: fx.Node, source: Tensor, target: Tensor, axes: Sequence[tuple[int, int, int]], starts: tuple[int, int]
    ) -> None:
        """Add a copy over axes of (size, stride in the source, stride in the target), outermost first."""
        kept: list[tuple[int, int, int]] = []
        for size, step_in, step_out in axes:
            if size == 1:
                continue
            if kept and kept[-1][1] == step_in * size and kept[-1][2] == step_out * size:
                kept[-1] = (kept[-1][0] * size, step_in, step_out)
            else:
                kept.append((size, step_in, step_out))
        if len(kept) > 6:
            raise self.refuse(node, f"it copies over {len(kept)} axes; at most 6 are supported")
        dims, steps_in, steps_out = zip(*(kept or [(1, 1, 1)]), strict=True)
        self.program.ops.append(Copy(self.source(node), (source,), target, dims, starts[0], steps_in, starts[1], steps_out))

    def lookup(self, node: fx.Node, value: Value, function: Callable[[Any], Any], quantization: Quantization) -> Value:
        """Apply a function of one real value by a table of 256 results."""
        every = dequantized(np.arange(-128, 128), value.quantization)
        table = quantized(function(every), quantization)
        tensor = self.tensor(node, value.tensor.size, quantization)
        self.program.ops.append(Lookup(self.source(node), (value.tensor,), tensor, table))
        return replace(value, tensor=tensor)

    def requantized(self, node: fx.Node, value: Value, quantization: Quantization | None) -> Value:
        """Return a value with other parameters, by a table where they differ."""
        if quantization is None or quantization == value.quantization:
            return value
        return self.lookup(node, value, lambda x: x, quantization)

    def image(self, node: fx.Node, value: Value) -> Value:
        """Return a value of rank 3 or 4 with its channels (dimension 1) innermost."""
        if len(value.shape) not in (3, 4):
            raise self.refuse(
                node, f"its input has {len(value.shape)} dimensions; 3 ([N, C, L]) or 4 ([N, C, H, W]) are supported"
            )
        return self.arranged(node, value, layout.channels_last(len(value.shape)))


def image_dims(shape: Shape) -> Dims:
    """Return [N, H, W, C] of a logical [N, C, H, W] or [N, C, L]; sequences have height 1."""
    n, channels, *spatial = shape
    height, width = spatial if len(spatial) == 2 else (1, spatial[0])
    return n, height, width, channels


def pair(value: Any, rank: int, default: int) -> tuple[int, int]:
    """Return (height, width) of an option that is a number or a list; of sequences the height is `default`."""
    given = [value] if isinstance(value, int) else list(value)
    if rank == 3:
        return default, int(given[0])
    return int(given[0]), int(given[-1])
