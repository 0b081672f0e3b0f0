"""What the integers among an op's arguments become when the axes of its tensors are cut.

The `rewrite` of an op's spec is a short function from a `Site` to {argument: its new value}. An op without one keeps its
arguments; whether that is right is checked by running the rewritten program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from bough.ops import spec
from bough.ops.rewriting import Site, Types
from bough.spaces import Atom, Indices
from bough.torch_internals import OpOverload


def rewrite(node: fx.Node, types: Types, kept: Mapping[Atom, Indices]) -> None:
    """Gives a node the integers that its axes have after the cut."""
    if not isinstance(node.target, OpOverload) or node not in types.axes:
        return
    entry = spec(node.target._schema.name.removeprefix("aten::")).rewrite
    if entry is None:
        return
    given = {**dict(zip(arguments(node), node.args, strict=False)), **node.kwargs}
    for name, value in entry(Site(node, given, types, kept)).items():
        set_argument(node, name, value)


def arguments(node: fx.Node) -> list[str]:
    """The names of the arguments that a node's op can be given; none where it calls no op."""
    return [a.name for a in node.target._schema.arguments] if isinstance(node.target, OpOverload) else []


def argument(node: fx.Node, name: str) -> Any:
    """An argument by its name in the op's schema; None where it is not given."""
    return {**dict(zip(arguments(node), node.args, strict=False)), **node.kwargs}.get(name)


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Sets an argument by its name in the op's schema, where the node gives it or by keyword."""
    at = arguments(node).index(name)
    if at < len(node.args):
        node.update_arg(at, value)
    else:
        node.update_kwarg(name, value)
