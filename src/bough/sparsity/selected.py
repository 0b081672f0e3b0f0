"""Which weights are made sparse."""

from __future__ import annotations

from collections.abc import Sequence

from bough.errors import PlanError
from bough.graph import Graph
from bough.sparsity.patterns import Pattern
from bough.sparsity.weight_matrices import WeightMatrix, weight_matrices
from bough.tracing.selection import tensors_named


def selected_weights(
    graph: Graph, ignore: Sequence[str], only: Sequence[str] | None, pattern: Pattern | None
) -> tuple[list[WeightMatrix], dict[str, str]]:
    """Return the weights to make sparse, and why the others stay dense.

    Args:
        graph: of the model.
        ignore: names of modules and parameters that stay dense.
        only: names outside of which everything stays dense; None for all. Weights that an embedding reads as well stay dense
            unless they are named.
        pattern: N:M, which does not fit all weights; None if there is none.

    Raises:
        PlanError: a name that leads nowhere, or no weight is left.
    """
    found, left_out = weight_matrices(graph)
    ignored = tensors_named(graph, ignore, "ignore")
    wanted = None if only is None else tensors_named(graph, only, "only")
    embedded = {name for op in graph.all_ops if op.name.startswith(("embedding", "_embedding")) for name in op.states if name}
    for matrix in found:
        if matrix.name in ignored:
            left_out[matrix.name] = "ignored"
        elif wanted is not None and matrix.name not in wanted:
            left_out[matrix.name] = "outside of only="
        elif wanted is None and matrix.name in embedded:
            left_out[matrix.name] = f"an embedding reads it as well: only=[..., {matrix.name!r}] makes it sparse"
        elif pattern is not None and pattern.obstacle(matrix):
            left_out[matrix.name] = pattern.obstacle(matrix)
    matrices = [m for m in found if m.name not in left_out]
    if not matrices:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise PlanError(f"no weight of {type(graph.model).__name__} can be made sparse: {why or 'it multiplies no activation'}")
    return matrices, left_out
