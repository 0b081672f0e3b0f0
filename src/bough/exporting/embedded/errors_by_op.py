"""Which operator of an integer program loses the signal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from bough.exporting.embedded.fixed_point import dequantized, quantized
from bough.exporting.embedded.lowering import Value
from bough.exporting.embedded.program import Program
from bough.exporting.embedded.reading import Reading, op_name, where
from bough.exporting.embedded.simulate import Memory, run_all

LEAST_SQNR = 10.0
"""Decibels of signal to quantization noise below which an export warns."""


class _Errors(fx.Interpreter):
    """Runs a graph in float, and keeps the signal-to-noise ratio of each value that the integer program computes."""

    def __init__(self, reading: Reading, values: dict[fx.Node, Value], memory: Memory) -> None:
        super().__init__(reading.module)
        self.values, self.memory, self.ratios = values, memory, dict[fx.Node, float]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        value = self.values.get(n)
        if value is not None and value.columns is None and isinstance(result, Tensor) and id(value.tensor) in self.memory:
            stored = self.memory[id(value.tensor)].reshape(value.memory_shape).transpose(np.argsort(value.order))
            self.ratios[n] = decibels(result.double().numpy(), dequantized(stored, value.quantization).astype(np.float64))
        return result


def decibels(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """Return the power of values over that of their error in decibels; infinite without an error.

    Example:
        >>> decibels(np.array([1.0, 3.0]), np.array([1.0, 2.0]))
        10.0
    """
    signal, noise = float((expected**2).sum()), float(((actual - expected) ** 2).sum())
    return ratio(signal, noise)


def ratio(signal: float, noise: float) -> float:
    """Return a ratio of powers in decibels: infinite without noise, minus infinity with noise alone."""
    if not noise:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def first_jump(ratios: dict[fx.Node, float], limit: float) -> tuple[fx.Node, float, float] | None:
    """Return (first operator below a limit whose inputs are above it, its ratio, the least ratio of its inputs).

    Args:
        ratios: decibels of each value, in the order in which they are computed.
        limit: decibels.
    """
    for node, value in ratios.items():
        before = min((ratios[n] for n in _sources(node, ratios)), default=float("inf"))
        if value < limit <= before:
            return node, value, before
    return None


def _sources(node: fx.Node, ratios: dict[fx.Node, float]) -> set[fx.Node]:
    """Return the nearest nodes before a node that have a ratio."""
    found: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        source = waiting.pop()
        if source in ratios:
            found.add(source)
        else:
            waiting += source.all_input_nodes
    return found


def low_sqnr_warning(
    reading: Reading, program: Program, values: dict[fx.Node, Value], inputs: tuple[Any, ...], sqnr: float
) -> str:
    """Return the text that warns of a program that does not compute what the model does, and names the operator at fault.

    Args:
        reading: the graph, which runs in float.
        program: the integer program of the graph.
        values: where each value of the graph lies, as `lower` returns it.
        inputs: real inputs of one run.
        sqnr: decibels of the program's outputs.
    """
    reading.module.recompile()
    given = [
        quantized(np.asarray(x).reshape(port.shape).transpose(port.order), port.tensor.quantization)
        for port, x in zip(program.inputs, inputs, strict=True)
    ]
    errors = _Errors(reading, values, run_all(program, given))
    with torch.no_grad():
        errors.run(*inputs)
    head = f"{sqnr:.1f} dB of signal to quantization noise, below {LEAST_SQNR:g}: the int8 program does not compute the model"
    found = first_jump(errors.ratios, LEAST_SQNR)
    if found is None:
        return f"{head}; no single operator loses the signal on the first recorded input"
    node, after, before = found
    sources = "exact inputs" if before == float("inf") else f"inputs of {before:.1f} dB"
    scale = values[node].quantization.scale
    return (
        f"{head}. The first operator below: {op_name(node)} in {where(node)}, {after:.1f} dB from {sources}, scale {scale:.3g}"
    )
