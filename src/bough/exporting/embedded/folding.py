"""Fold batch norms into the convolution or linear layer before them, and find activations that a kernel applies itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from bough.exporting.embedded.reading import Reading, op_name

BATCH_NORMS = {"_native_batch_norm_legit_no_training", "batch_norm", "native_batch_norm"}
CONVOLUTIONS = {"conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"}
CLAMPS = {"relu", "relu6", "hardtanh", "clamp"}
_FUSING = CONVOLUTIONS | {"linear", "add", "mul", "sub"}


def fold_batch_norms(reading: Reading) -> None:
    """Multiply batch norms into the weights before them, where these are in float and nothing else reads the result."""
    for node in reading.nodes:
        if op_name(node) not in BATCH_NORMS:
            continue
        result = _first_result(node)
        before = node.args[0]
        if not isinstance(before, fx.Node) or op_name(before) not in CONVOLUTIONS | {"linear"} or len(before.users) != 1:
            continue
        weight = before.args[1]
        if weight in reading.weights or before in reading.parameters or (op_name(before) == "linear" and _dims(before) != 2):
            continue
        scale, shift = affine(reading, node)
        transposed = op_name(before).startswith("conv_transpose")
        groups = before.args[6] if transposed and len(before.args) > 6 else 1
        if groups != 1 or weight not in reading.constants:
            continue
        values = reading.constants[weight]  # type: ignore[index]
        shape = [1] * values.dim()
        shape[1 if transposed else 0] = -1
        bias = before.args[2] if len(before.args) > 2 else None
        old = reading.constants[bias] if isinstance(bias, fx.Node) else torch.zeros_like(scale)
        args = list(before.args) + [None] * (3 - len(before.args))
        args[1] = _constant(reading, before, values.double() * scale.reshape(shape))
        args[2] = _constant(reading, before, old.double() * scale + shift)
        before.args = tuple(args)
        result.replace_all_uses_with(before)
        if result in reading.parameters:
            reading.parameters[before] = reading.parameters[result]
    reading.module.graph.eliminate_dead_code()


def affine(reading: Reading, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Return factor and summand per channel (float64) of a batch norm in evaluation mode."""
    weight, bias, mean, variance = (_value(reading, a) for a in node.args[1:5])
    epsilon = float(node.args[-1] if op_name(node) != "batch_norm" else node.args[7])  # type: ignore[arg-type]
    if mean is None or variance is None:
        raise AssertionError("a batch norm in evaluation mode has statistics")
    scale = (variance + epsilon).rsqrt() * (1.0 if weight is None else weight)
    return scale, (0.0 if bias is None else bias) - mean * scale


def fused_activations(reading: Reading) -> dict[fx.Node, fx.Node]:
    """Return the clamping activation that each kernel can apply to its own result, by the kernel's node."""
    found = {}
    for node in reading.nodes:
        users = list(node.users)
        if op_name(node) in _FUSING and len(users) == 1 and op_name(users[0]) in CLAMPS:
            own, after = reading.parameters.get(node), reading.parameters.get(users[0])
            if own is None or own == after:
                found[node] = users[0]
    return found


def clamp_bounds(node: fx.Node) -> tuple[float, float]:
    """Return the real bounds of a clamping activation."""
    name = op_name(node)
    if name == "relu":
        return 0.0, float("inf")
    if name == "relu6":
        return 0.0, 6.0
    default = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    given = [*node.args[1:], *default[len(node.args) - 1 :]]
    low = node.kwargs.get("min", given[0])
    high = node.kwargs.get("max", given[1])
    return (
        float("-inf") if low is None else float(low),
        float("inf") if high is None else float(high),
    )


def _first_result(node: fx.Node) -> fx.Node:
    return next((u for u in node.users if op_name(u) == "getitem"), node)


def _value(reading: Reading, node: Any) -> Tensor | None:
    return reading.constants[node].double() if isinstance(node, fx.Node) else None


def _dims(node: fx.Node) -> int:
    return int(node.meta["val"].dim())


def _constant(reading: Reading, before: fx.Node, values: Tensor) -> fx.Node:
    """Add a constant to the graph, in front of the op that reads it."""
    name = f"_folded_{len(reading.constants)}"
    reading.module.register_buffer(name, values.float())
    with reading.module.graph.inserting_before(before):
        node = reading.module.graph.get_attr(name)
    node.meta["val"] = values.float()
    reading.constants[node] = values.float()
    return node
