"""Choose whole layers to leave out, in the order of a criterion for layers, until the budget holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bough.defaults.candidates import Candidate
from bough.defaults.choose import Chosen, Scores
from bough.defaults.sample import Sample
from bough.errors import BudgetError, PlanError
from bough.graph import Graph
from bough.importance import score
from bough.importance.layer_lists import layer_lists
from bough.planning import Budget, Options, planned


def choose_layers(graph: Graph, budget: Budget, options: Options, criterion: Any, sample: Sample | None) -> Chosen:
    """Return the plan that leaves out the fewest layers of lowest score with which the budget holds; no width is cut.

    Args:
        graph: of the model.
        budget: upper bounds on what remains.
        options: of the plan; `drop` names layers that are left out first.
        criterion: that scores whole layers.
        sample: data for it.

    Raises:
        BudgetError: the budget can not be reached by leaving out layers.
        PlanError: the criterion needs data and there is none, or as `score`.
    """
    scores = score(graph, criterion, sample.data if sample else None)
    order = [name for _, name in sorted(_scored_layers(graph, scores), key=lambda pair: pair[0])]
    units = {g.name: np.ones(g.size) for g in graph.groups}
    first = list(options.drop)
    failure: BudgetError | None = None
    for count in range(len(order) + 1):
        drop = tuple(dict.fromkeys([*first, *order[:count]]))
        planning = replace(options, drop=drop, whole=tuple(units))
        try:
            plan = planned(graph, units, budget, planning)
        except BudgetError as error:
            failure = error
        except PlanError:
            if failure is None:
                raise
            break  # no further layer can be left out
        else:
            return Chosen(Candidate(criterion, f"{len(drop)} whole layers"), {**units, **scores}, planning, plan)
    raise BudgetError(f"leaving out whole layers by {type(criterion).__name__} is not enough: {failure}")


def _scored_layers(graph: Graph, scores: Scores) -> Iterator[tuple[float, str]]:
    """Yield (score, name) of each entry of the lists of layers; of layers that stand alone if there are no lists."""
    lists = layer_lists(graph)
    entries = {name: layers for name, layers in lists.items() if layers[0].container is not None} or lists
    for name, layers in entries.items():
        for layer, value in zip(layers, scores.get(name, ()), strict=False):
            if not any(other == layer.name or other.startswith(f"{layer.name}.") for other in entries if other != name):
                yield float(value), layer.name  # a layer that holds a list of layers is no layer to choose
