"""Costs of candidates by the closed form, for widths and layers together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bough.cost import ClosedForm, Cost
from bough.cost.prices import Prices
from bough.errors import SearchError
from bough.graph import Graph, Layer
from bough.latency import LatencyLine, LatencyTable
from bough.planning.depth import without

_KEPT = 256  # closed forms of layer patterns that stay in memory


class Pricing:
    """Prices candidates: a closed form per set of layers that are left out, made when it is first needed."""

    def __init__(self, graph: Graph, prices: Prices) -> None:
        self._graph, self._prices = graph, prices
        self._layers = {x.name: x for x in graph.layers}
        self._forms: OrderedDict[tuple[str, ...], ClosedForm] = OrderedDict()
        self._ops: dict[tuple[str, ...], int] = {}
        self.original: Cost = prices.form(graph).cost()
        self._place = {g.name: i for i, g in enumerate(graph.groups)}

    def form(self, left_out: Sequence[str]) -> ClosedForm:
        """Return the closed form of the model without these layers; layers within others of them are not named twice."""
        key = tuple(sorted(left_out))
        form = self._forms.get(key)
        if form is None:
            form = self._prices.form(without(self._graph, self._outer(key)))
            self._forms[key] = form
            if len(self._forms) > _KEPT:
                self._forms.popitem(last=False)
        self._forms.move_to_end(key)
        return form

    def costs(
        self, counts: NDArray[np.float64], left_out: Sequence[str], wanted: Container[str]
    ) -> dict[str, NDArray[np.float64]]:
        """Return the costs [candidates] of counts [candidates, groups of the whole graph], without some layers."""
        form = self.form(left_out)
        return form.evaluate(counts[:, [self._place[name] for name in form.names]], wanted)

    def corrected(self, line: LatencyLine) -> Pricing:
        """Return prices whose latency is what the line says of the table's."""
        return Pricing(self._graph, replace(self._prices, table=self._table.on_line(line)))

    def ops(self, left_out: Sequence[str]) -> int:
        """Return the number of ops of the model without these layers, as the latency table counts them."""
        key = tuple(sorted(left_out))
        if key not in self._ops:
            self._ops[key] = self._table.part(without(self._graph, self._outer(key))).ops
        return self._ops[key]

    @property
    def _table(self) -> LatencyTable:
        if not isinstance(self._prices.table, LatencyTable):
            raise SearchError("latency is not known: give table=bough.LatencyTable.measure(graph)")
        return self._prices.table

    def cost(self, counts: Mapping[str, int], left_out: Sequence[str]) -> Cost:
        """Return all costs of one candidate."""
        form = self.form(left_out)
        return form.cost(form.vector(counts))

    def _outer(self, names: Sequence[str]) -> list[Layer]:
        return [self._layers[n] for n in names if not any(n.startswith(f"{other}.") for other in names)]
