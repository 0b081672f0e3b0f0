"""Stages of refit: the consumers that are solved together, and where the runs of both models pause for them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from bough.calibration import StagedModel, TapPoint
from bough.errors import PlanError
from bough.graph import Graph
from bough.planning import Plan
from bough.recovery.correspondence import match_ops
from bough.recovery.refit.consumers import Consumer, ResidualInput


@dataclass(frozen=True, slots=True)
class BlockEnd:
    """The operators before which a block of both models ends; each model has the weights of one block in memory.

    Attributes:
        dense: index of the operator of the dense model.
        small: index of the operator of the cut model; None if the cut model runs nothing in the block.
    """

    dense: int
    small: int | None


@dataclass(frozen=True, slots=True)
class Stage:
    """A pause of both runs.

    Attributes:
        consumers: whose weights are solved for; none if the stage is the end of a block.
        dense: where the dense model pauses: after the last consumer, or at the end of the block.
        small: where the cut model pauses: before the first consumer, or at the end of the block; None if it stays.
    """

    consumers: tuple[Consumer, ...]
    dense: TapPoint
    small: TapPoint | None


def pair_blocks(dense: Graph, small: Graph, plan: Plan, stops: tuple[Sequence[int], Sequence[int]]) -> list[int | None]:
    """Return, for each block of the dense model, the block of the cut model that runs with it; None for a layer left out.

    Args:
        dense, small: graphs of both models.
        plan: by which the dense model was cut.
        stops: of each model, the operators before which a block ends.

    Raises:
        PlanError: a block of the cut model begins with an operator that the dense model does not run.
    """
    dense_op, dense_stops = match_ops(dense, small, plan), stops[0]
    pairs: list[int | None] = [0, *(None for _ in dense_stops)]
    for block, stop in enumerate(stops[1], 1):
        if stop not in dense_op:
            op = small.ops[stop]
            raise PlanError(f"{op.name} of {op.module or 'the model'} ({op.where}) is not in the run of the dense model")
        pairs[bisect_right(dense_stops, dense_op[stop].index)] = block
    return pairs


def block_ends(pairs: Sequence[int | None], stops: tuple[Sequence[int], Sequence[int]]) -> tuple[BlockEnd, ...]:
    """Return the ends of all blocks but the last one; the arguments are those of `pair_blocks` and its result."""
    dense_stops, small_stops = stops
    return tuple(
        BlockEnd(end, None if block is None or block >= len(small_stops) else small_stops[block])
        for end, block in zip(dense_stops, pairs, strict=False)
    )


def blocks_of_stages(
    consumers: Sequence[Consumer], ends: Sequence[BlockEnd], small: Graph, compensates: bool
) -> list[list[Stage]]:  # fmt: skip
    """Return the stages of each block, up to the last block that has consumers.

    Adjacent consumers of the same input are one stage, unless the output of one is added to a value computed from another's.

    Args:
        consumers: in the order of the run.
        ends: of all blocks but the last one.
        small: graph of the cut model.
        compensates: whether targets compensate for the error of the value to which an output is added.
    """
    blocks: list[list[Stage]] = []
    left = list(consumers)
    for end in (*ends, None):
        if not left:
            break
        inside = [c for c in left if end is None or c.dense.op < end.dense]
        left = left[len(inside) :]
        stages = [_stage(group) for group in _of_same_input(inside, small, compensates)]
        if end is not None and left:
            stages.append(Stage((), (end.dense, False), None if end.small is None else (end.small, False)))
        blocks.append(stages)
    return blocks


def _stage(consumers: Sequence[Consumer]) -> Stage:
    return Stage(tuple(consumers), (max(c.dense.op for c in consumers), True), (consumers[0].small.op, False))


def _of_same_input(consumers: Sequence[Consumer], small: Graph, compensates: bool) -> list[list[Consumer]]:
    """Group adjacent consumers of the same input."""
    groups: list[list[Consumer]] = []
    for c in consumers:
        first, residual = groups[-1][0] if groups else None, residual_of(c, compensates)
        same_input = first is not None and _input_value(small, first) == _input_value(small, c)
        if first is not None and same_input and (residual is None or residual.small[0] < first.small.op):
            groups[-1].append(c)
        else:
            groups.append([c])
    return groups


def _input_value(small: Graph, c: Consumer) -> int:
    return small.ops[c.small.op].inputs[c.small.argument]


def residual_of(c: Consumer, compensates: bool) -> ResidualInput | None:
    """Return the value to which a consumer's output is added, if its error is to be compensated for."""
    return c.residual if compensates else None


def staged_small(small: Graph, stages: Sequence[Stage], compensates: bool) -> StagedModel:
    """Return the stages of the cut model: it pauses before the first consumer of each."""
    stops = tuple(stage.small for stage in stages)
    needed: dict[TapPoint, int] = {point: i for i, point in enumerate(stops) if point is not None}
    for i, stage in enumerate(stages):
        needed.update({(r.small[0], True): i for c in stage.consumers if (r := residual_of(c, compensates))})
    return StagedModel(small, stops, needed)


def staged_dense(dense: Graph, stages: Sequence[Stage], compensates: bool) -> StagedModel:
    """Return the stages of the dense model: it pauses after the last consumer of each."""
    needed: dict[TapPoint, int] = {}
    for i, stage in enumerate(stages):
        needed[stage.dense] = i
        for c in stage.consumers:
            needed[c.dense.op, True] = i
            if c.routed:
                needed[c.dense.op, False] = i
            if residual := residual_of(c, compensates):
                needed[residual.dense[0], True] = i
    return StagedModel(dense, tuple(stage.dense for stage in stages), needed)
