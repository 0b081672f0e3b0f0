"""Parameters, MACs, activation bytes, peak memory and size of any plan, by arithmetic on the kept counts.

Every cost is a polynomial in the groups' counts: a sum over ops (or tensors) of products of axis sizes. Peak memory is
the maximum over the ops of such polynomials. All are evaluated for many candidate plans at once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from bough.graph.cost import FIELDS, Cost
from bough.graph.polynomials import Builder, Counts, Part, Polynomials, total
from bough.graph.records import Group, OpRecord, State, Storage

_AT_ONCE = 512  # plans, so that what is computed stays in the processor's cache


class Recorded(Protocol):
    """The part of a `Graph` that costs follow from."""

    @property
    def groups(self) -> Sequence[Group]: ...
    @property
    def ops(self) -> Sequence[OpRecord]: ...
    @property
    def states(self) -> Mapping[str, State]: ...
    @property
    def storages(self) -> Sequence[Storage]: ...


class ClosedForm:
    """The costs of a graph as functions of the units kept in each of its groups: `parts`, one per field of `Cost`."""

    def __init__(self, names: list[str], sizes: Counts, parts: Mapping[str, Part]) -> None:
        self.names, self.sizes, self.parts = names, sizes, dict(parts)

    def rows(self, counts: Counts, name: str) -> NDArray[np.float64]:
        """The rows [plans, rows] whose largest is the cost `name` of plans [plans, groups]."""
        part = self.parts[name]
        pieces = [counts[i : i + _AT_ONCE] for i in range(0, len(counts), _AT_ONCE)]
        return np.concatenate([(part.matrix @ part.terms(piece)).T for piece in pieces])

    def evaluate(self, counts: Counts, wanted: Container[str] = FIELDS) -> dict[str, NDArray[np.float64]]:
        """Costs of plans [plans, groups] of kept counts: one array [plans] per field of `Cost` that is known and wanted."""
        counts = np.atleast_2d(np.asarray(counts, dtype=np.float64))
        return {name: self.rows(counts, name).max(axis=1, initial=0.0) for name in self.parts if name in wanted}

    def cost(self, counts: Counts | None = None) -> Cost:
        """The cost at one vector of counts; of the whole model without."""
        values = self.evaluate(self.sizes if counts is None else counts)
        return Cost.of({k: float(v[0]) for k, v in values.items()})

    def vector(self, counts: Mapping[str, int] | None = None) -> Counts:
        """Counts per group name (all units where absent) in the order of `names`."""
        known = counts or {}
        return np.array([known.get(n, s) for n, s in zip(self.names, self.sizes, strict=True)], dtype=np.float64)

    def extended(self, parts: Mapping[str, Part]) -> ClosedForm:
        """With further costs."""
        return ClosedForm(self.names, self.sizes, {**self.parts, **parts}) if parts else self


def _made(graph: Recorded) -> ClosedForm:
    atoms = [g.atom for g in graph.groups]
    states = list(graph.states.values())
    parts = {
        "params": total(atoms, ((1.0, s.axes) for s in states if s.parameter)),
        "macs": total(atoms, ((1.0, spaces) for op in graph.ops for spaces in op.macs)),
        "size": total(atoms, ((float(s.itemsize), s.axes) for s in states if s.saved)),
        **activation_parts(graph, lambda s: float(s.itemsize)),
    }
    return ClosedForm([g.name for g in graph.groups], np.array([float(g.size) for g in graph.groups]), parts)


def activation_parts(graph: Recorded, element: Callable[[Storage], float], copies: Sequence[Storage] = ()) -> dict[str, Part]:
    """Return the bytes of activations, all together and those alive at once, with `element` bytes for an element of a storage.

    `copies`: storages that a runtime needs besides those of the recorded run; they count as alive, but not among all together.
    """
    made = ((element(s), s.axes) for s in graph.storages if s.born >= 0)
    return {
        "activation_bytes": total((g.atom for g in graph.groups), made),
        "peak_memory": _liveness(graph, element, [*graph.storages, *copies]),
    }


def _liveness(graph: Recorded, element: Callable[[Storage], float], storages: Sequence[Storage]) -> Polynomials:
    """One polynomial per op: the bytes alive while it runs. Ops whose live set is a subset of a neighbour's are left out."""
    builder = Builder(g.atom for g in graph.groups)
    events: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for i, storage in enumerate(storages):
        events.setdefault(max(storage.born, 0), []).append(i)
        ends.setdefault(storage.dies, []).append(i)
    expanded = [builder.expand(s.axes) for s in storages]
    live: dict[int, None] = {}
    last_added = False
    for step in range(len(graph.ops) + 1):
        new = events.get(step, [])
        live.update(dict.fromkeys(new))
        dead = ends.get(step, [])
        last_added = last_added or bool(new)
        if (last_added and dead) or step == len(graph.ops):
            builder.add([(element(storages[i]), expanded[i]) for i in live])
            last_added = False
        for i in dead:
            live.pop(i, None)
    return builder.build()


_forms: WeakKeyDictionary[Recorded, ClosedForm] = WeakKeyDictionary()


def closed_form(graph: Recorded) -> ClosedForm:
    """The closed form of a graph's costs; made once."""
    form = _forms.get(graph)
    if form is None:
        form = _forms[graph] = _made(graph)
    return form


def cost_of(graph: Recorded, counts: Mapping[str, int] | None = None) -> Cost:
    """The cost of a graph's model with the given units kept per group name (all where absent)."""
    form = closed_form(graph)
    return form.cost(form.vector(counts))
