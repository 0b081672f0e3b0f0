"""The widths and depths that the subnets of a supernet may have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from bough.errors import ConflictError, PlanError, instead
from bough.graph import Graph
from bough.planning.constraints.equations import ties
from bough.planning.depth import containers, left_out
from bough.supernet.subnet import Subnet


@dataclass(frozen=True, eq=False, slots=True)
class ElasticWidth:
    """Groups whose widths change together, because the model's Python computes one from the other; most are alone.

    Attributes:
        groups: names.
        counts: [widths, groups] int64: the units that they may keep, from all of them down.
    """

    groups: tuple[str, ...]
    counts: NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class SubnetSpace:
    """All subnets of a supernet.

    Attributes:
        graph: of the model.
        widths: what may be chosen for groups; the width of a group that is in none of them stays.
        depths: lists of layers, each in the order in which they are left out: the first first.
    """

    graph: Graph
    widths: tuple[ElasticWidth, ...]
    depths: tuple[tuple[str, ...], ...]
    _rests: dict[tuple[str, ...], tuple[Graph, dict[str, str]]] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """{group: units} of all groups of the model."""
        return {g.name: g.size for g in self.graph.groups}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that may be left out, in turns of the lists: the order in which a smaller subnet loses them."""
        turns = max(map(len, self.depths), default=0)
        return tuple(names[i] for i in range(turns) for names in self.depths if i < len(names))

    def at(self, position: float) -> Subnet:
        """Return the subnet at a position from 0 (the smallest) to 1 (the largest): widths and depths at the same share."""
        rows = [round((1 - position) * (len(w.counts) - 1)) for w in self.widths]
        depths = [round((1 - position) * len(names)) for names in self.depths]
        return self.subnet(rows, depths)

    def smallest(self) -> list[Subnet]:
        """Return the subnets of the smallest widths with all layers, and without one more of them in each."""
        counts = {**self.sizes, **{n: int(k) for w in self.widths for n, k in zip(w.groups, w.counts[-1], strict=True)}}
        return [self.trimmed(counts, self.layers[:n]) for n in range(len(self.layers) + 1)]

    def sample(self, rng: np.random.Generator, smallest: float = 0.0) -> Subnet:
        """Draw each width and each depth uniformly.

        Args:
            rng: source of the draws.
            smallest: position (see `at`) of the smallest width and depth that may be drawn.
        """
        rows = [int(rng.integers(round((1 - smallest) * (len(w.counts) - 1)) + 1)) for w in self.widths]
        depths = [int(rng.integers(round((1 - smallest) * len(names)) + 1)) for names in self.depths]
        return self.subnet(rows, depths)

    def subnet(self, rows: Sequence[int], depths: Sequence[int]) -> Subnet:
        """Return the subnet of a choice for each of `widths`, by row of its counts, and of `depths`, by layers left out."""
        counts = dict(self.sizes)
        for width, row in zip(self.widths, rows, strict=True):
            counts.update(zip(width.groups, map(int, width.counts[row]), strict=True))
        dropped = tuple(name for names, n in zip(self.depths, depths, strict=True) for name in names[:n])
        return self.trimmed(counts, dropped)

    def trimmed(self, counts: Mapping[str, int], dropped: Iterable[str]) -> Subnet:
        """Return the subnet of the counts of all groups, as far as the model has them without the dropped layers.

        Groups whose widths must stay without these layers are whole (see `frozen_without`).
        """
        gone = tuple(sorted(dropped))
        frozen = self.frozen_without(gone)
        return Subnet({g.name: g.size if g.name in frozen else counts[g.name] for g in self.without(gone).groups}, gone)

    def without(self, dropped: Iterable[str]) -> Graph:
        """Return the graph of the model without some of its layers.

        Raises:
            ConflictError: the model does not run without them.
        """
        return self._rest(dropped)[0]

    def frozen_without(self, dropped: Iterable[str]) -> Mapping[str, str]:
        """Return {group that can not be cut if some layers are left out: reason}.

        Raises:
            ConflictError: as for `without`.
        """
        return self._rest(dropped)[1]

    def _rest(self, dropped: Iterable[str]) -> tuple[Graph, dict[str, str]]:
        gone = tuple(sorted(dropped))
        if gone not in self._rests:
            rest = left_out(self.graph, [x for x in self.graph.layers if x.name in gone])
            self._rests[gone] = rest, dict(ties(rest, {}).frozen)
        return self._rests[gone]

    def checked(self, counts: Mapping[str, int], drop: Iterable[str]) -> Subnet:
        """Return the subnet of counts by group name; groups that are not named are as wide as in the supernet.

        Groups of one `ElasticWidth` need not all be named: the others follow.

        Raises:
            PlanError: a name of no elastic group or layer, or a count that the group may not have.
            ConflictError: a group whose width must stay without the dropped layers.
        """
        chosen = dict(self.sizes)
        for name in counts:
            if name not in self.sizes:
                raise PlanError(f"counts names {name!r}, which is no group of the supernet; {instead(name, self.sizes)}")
        for width in self.widths:
            named = {n: int(counts[n]) for n in width.groups if n in counts}
            fit = [row for row in width.counts if all(row[width.groups.index(n)] == k for n, k in named.items())]
            if not fit:
                raise PlanError(f"no subnet has {_shown(named)}; the widths are {_choices(width)}")
            chosen.update(zip(width.groups, map(int, fit[0]), strict=True))
        fixed = {n: k for n, k in counts.items() if chosen[n] != k}
        if fixed:
            raise PlanError(f"no subnet has {_shown(fixed)}: the width is not elastic, it stays {chosen[next(iter(fixed))]}")
        dropped = tuple(drop)
        for name in dropped:
            if name not in self.layers:
                raise PlanError(f"drop: {name!r} is no elastic layer of the supernet; {instead(name, self.layers)}")
        subnet = self.trimmed(chosen, dropped)
        whole = {n: int(k) for n, k in counts.items() if n in subnet.counts and subnet.counts[n] != k}
        if whole:
            why = self.frozen_without(dropped)[next(iter(whole))]
            raise ConflictError(f"no subnet without {', '.join(dropped)} has {_shown(whole)}: {why}")
        return subnet


def _shown(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n}={k}" for n, k in counts.items())


def _choices(width: ElasticWidth) -> str:
    return "; ".join(f"{n}: {', '.join(map(str, width.counts[:, i]))}" for i, n in enumerate(width.groups))


def elastic_layers(graph: Graph, depth: bool | Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return the lists of layers that may be left out, each in the order in which they are.

    Args:
        graph: of the model.
        depth: False for none; True for the entries of lists that can be left out, the last one first (of a list whose entries
            all can, the first entry stays; lists of lists are not entries); or names and patterns of layers, which are left out
            in this order.

    Raises:
        PlanError: a name or pattern fits no layer that can be left out, or one of two layers is inside the other.
    """
    if isinstance(depth, bool):
        lists = containers(graph) if depth else {}
        single = [x.name for entries in lists.values() for x in entries if x.name not in lists]
        free = []
        for name, entries in lists.items():
            all_can = len(entries) == len(graph.model.get_submodule(name)._modules)
            free.append([x.name for x in entries[all_can:] if x.name in single and not _inside(x.name, single)])
        return tuple(tuple(reversed(names)) for names in free if names)
    found: dict[str, list[str]] = {}
    names = [x.name for x in graph.layers]
    for pattern in (depth,) if isinstance(depth, str) else depth:
        fit = [n for n in reversed(names) if fnmatchcase(n, pattern)]
        fit = [n for n in fit if not _inside(n, fit)]
        if not fit:
            raise PlanError(f"depth: {pattern!r} is no layer that can be left out; {instead(pattern, names)}")
        for x in (x for n in fit for x in graph.layers if x.name == n):
            named = found.setdefault(x.container or x.name, [])
            if x.name not in named:
                named.append(x.name)
    every = [n for entries in found.values() for n in entries]
    for name in every:
        if _inside(name, every):
            raise PlanError(f"depth: {name!r} is inside another of these layers; name one of them")
    return tuple(map(tuple, found.values()))


def _inside(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)
