"""Quantization parameters of values that have none: from the operator where it fixes them, else from calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from bough.calibration import select_inputs
from bough.errors import ExportError
from bough.exporting.embedded.fixed_point import HIGHEST, LOWEST
from bough.exporting.embedded.folding import BATCH_NORMS, fused_activations
from bough.exporting.embedded.program import Quantization
from bough.exporting.embedded.reading import Reading, op_name, requantized, where
from bough.exporting.embedded.recurrent import over_steps

FIXED = {
    "sigmoid": Quantization(1 / 256, -128), "softmax": Quantization(1 / 256, -128), "_softmax": Quantization(1 / 256, -128),
    "hardsigmoid": Quantization(1 / 256, -128), "tanh": Quantization(1 / 128, 0),
}  # fmt: skip
"""Parameters of operators whose results have known bounds."""

INHERITING = {
    "view", "reshape", "_unsafe_view", "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "slice", "select",
    "split", "split_with_sizes", "chunk", "unbind", "expand", "pad", "constant_pad_nd", "max_pool1d", "max_pool2d",
    "avg_pool1d", "avg_pool2d", "adaptive_max_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "getitem",
    "max_pool2d_with_indices", "repeat", "flip",
}  # fmt: skip
"""Operators whose results keep the parameters of their (first) input."""

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
_LEAST_SCALE = 1e-8


def complete(reading: Reading, inputs: Inputs, data: Iterable[Any] | None, model: nn.Module) -> list[str]:
    """Give every value of a graph quantization parameters, and return the names of those that data decided.

    Args:
        reading: the graph; its `parameters` are completed in place.
        inputs: example inputs, whose shapes the batches of data are split to.
        data: batches of real inputs, or None where the graph has all parameters.
        model: the model that the graph is of, to tell inputs from labels in a batch.

    Raises:
        ExportError: a value needs data and none is given.
    """
    fused = fused_activations(reading)
    wanted = []
    for node in _values(reading):
        if node in reading.parameters or node in fused:
            continue
        if _needs_data(node, data is not None):
            wanted.append(node)
    if wanted and data is None:
        names = "; ".join(f"{_label(n)} ({where(n)})" for n in wanted[:4])
        raise ExportError(
            f"{len(wanted)} values have no quantization parameters: {names}. Give calibration data (data=batches of real "
            "inputs), or a model that was quantized with all of its operators"
        )
    if wanted:
        ranges = over_steps(reading, _observed(reading, wanted, inputs, data or (), model))
        reading.parameters.update({node: parameters(*ranges[node]) for node in wanted})
    _share_in_concatenations(reading, set(wanted))
    return [_label(node) for node in wanted]


def _needs_data(node: fx.Node, given: bool) -> bool:
    """Tell whether only data can decide the parameters of a value; those of a concatenation can follow from its parts."""
    name = op_name(node)
    if node.op == "placeholder":
        return True
    if name == "getitem":
        return op_name(node.args[0]) in BATCH_NORMS  # type: ignore[arg-type]
    return given if name == "cat" else name not in INHERITING and name not in FIXED


def parameters(low: float, high: float) -> Quantization:
    """Return the scale and zero point at which int8 covers [low, high] and holds zero exactly.

    Example:
        >>> parameters(0.0, 255.0)
        Quantization(scale=1.0, zero_point=-128)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / (HIGHEST - LOWEST), _LEAST_SCALE)))
    return Quantization(scale, int(np.clip(LOWEST - round(low / scale), LOWEST, HIGHEST)))


def _values(reading: Reading) -> Iterator[fx.Node]:
    """Yield the nodes that stand for float tensors that depend on the inputs."""
    for node in reading.module.graph.nodes:
        if node.op not in ("placeholder", "call_function") or node in reading.constants:
            continue
        if node.target is requantized or op_name(node) in BATCH_NORMS - {"batch_norm"}:
            continue  # what is read is the item of the result
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            yield node


def _label(node: fx.Node) -> str:
    return str(node.target) if node.op == "placeholder" else op_name(node)


class _Observer(fx.Interpreter):
    """Runs a graph and keeps the least and largest number of some values."""

    def __init__(self, module: fx.GraphModule, wanted: Iterable[fx.Node]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.ranges = {node: (float("inf"), float("-inf")) for node in wanted}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.ranges:
            low, high = self.ranges[n]
            self.ranges[n] = min(low, float(result.min())), max(high, float(result.max()))
        return result


def _observed(
    reading: Reading, wanted: list[fx.Node], inputs: Inputs, data: Iterable[Any], model: nn.Module
) -> dict[fx.Node, tuple[float, float]]:
    reading.module.recompile()
    observer, count = _Observer(reading.module, wanted), 0
    with torch.no_grad():
        for sample in samples(model, inputs, data):
            observer.run(*sample)
            count += 1
    if not count:
        raise ExportError("data has no batch with as many samples as example_inputs: give at least one")
    for node, (low, high) in observer.ranges.items():
        if not np.isfinite([low, high]).all():
            raise ExportError(f"{_label(node)} ({where(node)}) is not finite on the calibration data: {low} to {high}")
    return observer.ranges


def samples(model: nn.Module, inputs: Inputs, data: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield batches of data in pieces of the batch size of the example inputs, as positional arguments of the graph."""
    args, kwargs = inputs
    size = next((len(t) for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim()), 1)
    for batch in data:
        given, named = select_inputs(model, batch, len(args), tuple(kwargs))
        parts = [*given, *named.values()]
        for start in range(0, len(parts[0]) - size + 1, size):
            yield tuple(part[start : start + size] for part in parts)


def _share_in_concatenations(reading: Reading, free: set[fx.Node]) -> None:
    """Give the parts of a concatenation its parameters where data decided theirs, so that they are copied unchanged."""
    for node in reversed(reading.nodes):
        if op_name(node) != "cat" or node not in reading.parameters:
            continue
        for part in node.args[0]:  # type: ignore[union-attr]
            origin = part
            while isinstance(origin, fx.Node) and op_name(origin) in INHERITING - {"cat"} and origin not in reading.parameters:
                origin = origin.args[0]
            if origin in free:
                reading.parameters[origin] = reading.parameters[node]  # type: ignore[index]
