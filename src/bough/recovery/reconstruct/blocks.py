"""Blocks of a cut model that are trained one by one: entries of lists of layers, with the axes of what they give."""

from __future__ import annotations

from dataclasses import dataclass

from bough.graph import Graph, OpRecord, value_axes
from bough.planning import Plan
from bough.recovery.correspondence import name_after_cut
from bough.spaces import Space, normal


@dataclass(frozen=True, slots=True)
class Block:
    """A module of both models.

    Attributes:
        name: in the dense model.
        small: its name in the cut model.
        axes: index spaces of the dims of its output, in the dense run.
        features: whether the last dim of the output holds the features of a row, such as a token.
    """

    name: str
    small: str
    axes: tuple[Space, ...]
    features: bool


def find_blocks(dense: Graph, plan: Plan) -> tuple[tuple[Block, ...], dict[str, str]]:
    """Return the blocks in the order of the run, and the reasons why other entries of their lists are none.

    A block is an entry of a list of layers some of which can be left out, such as the decoder layers of a language model or the
    residual blocks of a stage; of lists inside lists, an entry of the outermost.

    Args:
        dense: of the dense model.
        plan: by which it was cut.
    """
    containers = {x.container for x in dense.layers if x.container is not None}
    outermost = [c for c in containers if not any(c.startswith(f"{other}.") for other in containers)]
    names = [f"{c}.{n}" for c in outermost for n, m in dense.model.get_submodule(c).named_children() if [*m.parameters()]]
    in_parameters = {
        a for s in dense.states.values() if s.parameter for axis in s.axes for a in normal(axis).atoms
    }  # fmt: skip
    blocks: dict[int, Block] = {}
    skipped: dict[str, str] = {}
    axes = value_axes(dense.ops)
    for name in names:
        if any(f"{name}.".startswith(f"{layer}.") for layer in plan.left_out):
            continue
        ops = [op for op in dense.ops if f"{op.module}.".startswith(f"{name}.")]
        given = _given(dense, ops) if ops else ()
        if len(given) != 1:
            skipped[name] = "it gives several values to what follows" if given else "it does not run"
            continue
        spaces = axes[given[0]]
        last = bool(in_parameters.intersection(normal(spaces[-1]).atoms))
        blocks[ops[0].index] = Block(name, name_after_cut(name, plan), spaces, last)
    return tuple(blocks[i] for i in sorted(blocks)), skipped


def _given(graph: Graph, ops: list[OpRecord]) -> tuple[int, ...]:
    """Return the values that some operators make and others read; the last one's result if no other reads any."""
    inside = {op.index for op in ops}
    made = {v for op in ops for v in op.values}
    read = {v for op in graph.ops if op.index not in inside for v in op.inputs}
    return tuple(sorted(made & read)) or ops[-1].values
