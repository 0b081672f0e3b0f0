"""Which groups' cut does a model's Python contradict, where the conflict itself does not tell?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bough.errors import ConflictError
from bough.graph import Graph
from bough.planning.constraints.equations import Ties, solve
from bough.planning.constraints.fold import fold
from bough.spaces import Atom
from bough.tracing.replay import replay


def isolate(graph: Graph, kept: Mapping[Atom, int], tied: Ties, why: str) -> dict[str, str]:
    """Group names -> why they are frozen: found by cutting halves of the groups, and halves of these, on their own.

    Tied groups stay together. Costs about 2 k log n replays for k guilty of n groups; never gives an empty answer.
    """
    atoms = {g.name: g.atom for g in graph.groups}
    classes = [[n for n in names if kept.get(atoms[n], atoms[n].size) < atoms[n].size] for names in tied.classes]
    cut = [names for names in classes if names]

    def agrees(part: Sequence[list[str]]) -> bool:
        chosen = {atoms[n]: kept[atoms[n]] for names in part for n in names}
        attributes, _ = solve(graph.equations, chosen)
        check = replay(graph, chosen, attributes)
        return not check.conflicts and not fold(graph, check.rescales)[1]

    def guilty(part: list[list[str]]) -> list[list[str]]:
        """Of a part that does not agree with the model's Python."""
        if len(part) == 1:
            return part
        halves = part[: len(part) // 2], part[len(part) // 2 :]
        found = [names for half in halves if not agrees(half) for names in guilty(half)]
        return found or part  # only together do they fail

    if not cut:
        raise ConflictError(f"the model's Python does not repeat its own run, even with nothing cut: {why}")
    return {n: why for names in guilty(cut) for n in names}
