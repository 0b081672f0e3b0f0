"""Units that stay, checked against the model's own Python, and the plan that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from bough.calls import FORWARD, Call
from bough.cost import Cost
from bough.graph import Graph
from bough.planning.allocation import unit_scores
from bough.planning.attributes import SizeAttributes, Stale
from bough.planning.config_widths.uniform import ConfigSettings
from bough.planning.constraints.equations import Ties, solve
from bough.planning.constraints.fold import fold
from bough.planning.index_lists import IndexLists
from bough.planning.plan import Plan, Scale
from bough.spaces import Atom, Each, Kept, indices
from bough.tracing.capture.attribute_numbers import read
from bough.tracing.capture.provenance import Path, attributes_in, key_of
from bough.tracing.capture.tree import tensors_within
from bough.tracing.fingerprint import weights_digest
from bough.tracing.replay import Conflict, replay


@dataclass(frozen=True, eq=False, slots=True)
class Draft:
    """Counts, the units that stay, what the model is to get, and where its Python still does not agree."""

    graph: Graph
    counts: Mapping[str, int]
    kept: Mapping[Atom, Kept]
    settings: ConfigSettings
    scales: tuple[Scale, ...]
    conflicts: tuple[Conflict, ...]
    stale: tuple[Stale, ...] = ()

    @staticmethod
    def of(graph: Graph, counts: Mapping[str, int], kept: Mapping[Atom, Kept], settings: ConfigSettings | None = None) -> Draft:
        """Replays the model at these sizes; what it must get follows from the equations, unless a config says it."""
        sizes = {a: len(i) for a, i in kept.items()}
        settings = ConfigSettings(dict(solve(graph.equations, sizes)[0]), {}) if settings is None else settings
        check = replay(graph, sizes, settings.numbers)
        scales, unfolded = fold(graph, check.rescales)
        return Draft(graph, counts, kept, settings, scales, (*check.conflicts, *unfolded))

    def following(self, attributes: SizeAttributes) -> Draft:
        """Return the same with the attributes set that `forward` does not read and that surely are cut widths.

        An attribute is left as it is, and is stale, if the model's Python no longer agrees with the plan once it is set, or
        derives another number from it.
        """
        numbers, stale = attributes.at(self.sizes)
        refused = self._refused(numbers)
        stale += [attributes.stale(p, refused[p], [numbers[p]]) for p in refused]
        settings = replace(
            self.settings, numbers={**{p: n for p, n in numbers.items() if p not in refused}, **self.settings.numbers}
        )
        return replace(self, settings=settings, stale=tuple(stale))

    def _refused(self, numbers: Mapping[Path, int]) -> dict[Path, int]:
        """Return those of new values of attributes, {path: value before}, that change what the model computes."""
        if not numbers or self._runs_alike(numbers):
            return {}
        if len(numbers) == 1:
            return {p: read(self.graph.model, p) for p in numbers}
        items = [*numbers.items()]
        half = len(items) // 2
        return {**self._refused(dict(items[:half])), **self._refused(dict(items[half:]))}

    def _runs_alike(self, numbers: Mapping[Path, int]) -> bool:
        check = replay(self.graph, self.sizes, {**self.settings.numbers, **numbers})
        scales, unfolded = fold(self.graph, check.rescales)
        return not check.conflicts and not unfolded and scales == self.scales

    @property
    def sizes(self) -> dict[Atom, int]:
        """How many units stay of each group that is cut."""
        return {a: len(i) for a, i in self.kept.items()}

    def for_rebuild(self) -> Draft:
        """The same without what the model is settings: its Python will not be run."""
        return replace(self, settings=ConfigSettings({}, {}), scales=())

    def plan(self, tied: Ties, cost: Cost, original: Cost) -> Plan:
        """The plan that keeps these units; `cost` is what the closed form says of the counts."""
        graph = self.graph
        about_layers, sequences = graph.layer_notes
        cut = self._cut()
        return Plan(
            fingerprint=graph.fingerprint,
            kept=cut,
            groups={g.name: (self.counts[g.name], g.size) for g in graph.groups},
            attributes={**self._changed(), **about_layers},
            stale=self.stale,
            scales=self.scales,
            renormalizing=tuple(g.name for g in graph.groups if g.atom in self.kept and not g.exact),
            frozen=dict(tied.frozen),
            cost=self._without_idle(cost, cut),
            original=original,
            original_shapes={n: list(graph.tensor(n).shape) for n in cut},
            left_out={x.name: (x.form, x.container is not None) for x in graph.left_out},
            sequences=sequences,
            inputs=_inputs(graph.call),
            weights=weights_digest(graph.model),
            unreached={u.name: u.treatment for u in graph.unreached},
            tie=graph.tie,
        )

    def _cut(self) -> dict[str, dict[int, list[int]]]:
        """The indices kept, by tensor and dim; of what nothing comes of, as the class makes it."""
        graph, cut, lists = self.graph, dict[str, dict[int, list[int]]](), IndexLists()
        for name, dim in sorted({(m.name, m.dim) for g in graph.groups if g.atom in self.kept for m in g.members}):
            cut.setdefault(name, {})[dim] = lists(indices(graph.states[name].axes[dim], self.kept))
        by_name = {g.name: self.kept.get(g.atom) for g in graph.groups}
        for (name, dim), (like, n) in self.settings.idle.items():
            units = by_name[like] if like else None
            cut.setdefault(name, {})[dim] = list(range(n)) if units is None or isinstance(units, Each) else units.tolist()
        return cut

    def _changed(self) -> dict[str, float]:
        """What the model gets, as far as it does not hold it already."""
        values: dict[Path, float] = {a.path: a.value for e in self.graph.equations for a in attributes_in(e.expression)}
        return {key_of(path): value for path, value in self.settings.numbers.items() if values.get(path) != value}

    def _without_idle(self, cost: Cost, cut: Mapping[str, Mapping[int, list[int]]]) -> Cost:
        """The cost less what tensors that nothing comes of lose beside what their groups do."""
        idle, graph = self.settings.idle, self.graph
        params, size = cost.params, cost.size
        for name in {name for name, _ in idle} & graph.states.keys():
            state, shape = graph.states[name], list(graph.tensor(name).shape)
            whole = prod(len(cut[name][d]) if d in cut[name] and (name, d) not in idle else n for d, n in enumerate(shape))
            less = whole - prod(len(cut[name].get(d, range(n))) for d, n in enumerate(shape))
            params -= less if state.parameter else 0
            size -= less * state.itemsize if state.saved else 0
        return replace(cost, params=params, size=size)


def uncut_plan(graph: Graph) -> Plan:
    """Return the plan that keeps all units: a checkpoint needs a plan, also of a model that was changed in its values alone."""
    counts = {g.name: g.size for g in graph.groups}
    return Draft(graph, counts, {}, ConfigSettings({}, {}), (), ()).plan(Ties((), {}), graph.cost(), graph.cost())


def _inputs(call: Call) -> int | tuple[str, ...] | None:
    """Return `Plan.inputs`: how many positional arguments hold tensors, or the names of the keyword arguments that do."""
    args = sum(next(tensors_within(a), None) is not None for a in call.args)
    names = tuple(k for k, v in call.kwargs.items() if next(tensors_within(v), None) is not None)
    return None if call.method != FORWARD or (args and names) else names or args


def chosen_units(
    graph: Graph, scores: Mapping[str, NDArray[np.float64]], counts: Mapping[str, int]
) -> dict[Atom, NDArray[np.int64]]:
    """The indices of the units with the highest scores, ascending, of each group that is cut."""
    kept: dict[Atom, NDArray[np.int64]] = {}
    for g in graph.groups:
        n = counts[g.name]
        if n < g.size:
            kept[g.atom] = np.sort(np.argsort(-unit_scores(scores, g), kind="stable")[:n]).astype(np.int64)
    return kept
