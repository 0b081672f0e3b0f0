"""Programs with operators of quantization: which they are, and what their outputs range over."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn


def is_quantized(model: nn.Module) -> bool:
    """Return whether a model is a program with operators of quantization."""
    return isinstance(model, fx.GraphModule) and any("quantized_decomposed" in str(n.target) for n in model.graph.nodes)


def output_ranges(model: nn.Module, names: Sequence[str]) -> dict[str, float]:
    """Return half of the range of each output that is stored in INT8; the values of one example may use little of it.

    Args:
        model: a program; any other model has no such outputs.
        names: of the outputs, in order.
    """
    if not isinstance(model, fx.GraphModule):
        return {}
    outputs = next(n for n in model.graph.nodes if n.op == "output").all_input_nodes
    if len(outputs) != len(names):
        return {}  # a tensor is returned twice, or is a constant
    found: dict[str, float] = {}
    for name, node in zip(names, outputs, strict=True):
        if "dequantize_per_tensor" in str(node.target):
            _, scale, _, low, high = node.args[:5]
            found[name] = float(scale) * (high - low) / 2
    return found
