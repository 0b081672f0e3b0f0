"""One range for what a recurrent layer computes at each step, so that all steps share their scales, multipliers and biases."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import fx

from bough.exporting.embedded.reading import Reading, op_name

Ranges = dict[fx.Node, tuple[float, float]]
_DEPTH = 6  # operators back from a value by which the same value of another step is known
_RECURRENT = "torch.nn.modules.rnn"


def over_steps(reading: Reading, ranges: Mapping[fx.Node, tuple[float, float]]) -> Ranges:
    """Return ranges in which values of recurrent layers cover those of the same values at all steps.

    Two values of a layer are the same at different steps if the operators that lead to them, and the weights that these read,
    are the same.
    """
    together: dict[Hashable, list[fx.Node]] = {}
    for node in ranges:
        if (layer := _layer(node)) is not None:
            together.setdefault((layer, _structure(reading, node, _DEPTH)), []).append(node)
    found = dict(ranges)
    for nodes in together.values():
        both = min(ranges[n][0] for n in nodes), max(ranges[n][1] for n in nodes)
        found.update(dict.fromkeys(nodes, both))
    return found


def _layer(node: fx.Node) -> str | None:
    """Return the path of the recurrent layer that a node is of; None for others."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack and _RECURRENT in str(stack[-1][1]) else None


def _structure(reading: Reading, node: fx.Node, depth: int) -> Hashable:
    """Return operators and weights that lead to a node, up to a depth; which step a part is of does not count."""
    if node in reading.constants or node.op != "call_function":
        return node.name
    if depth == 0:
        return op_name(node)
    inputs = tuple(_structure(reading, n, depth - 1) for n in node.all_input_nodes)
    last = node.args[1] if op_name(node) == "getitem" and op_name(node.all_input_nodes[0]) != "unbind" else None
    return op_name(node), last, inputs
