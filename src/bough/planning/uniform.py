"""Uniform plans: what occupies the same place in repeated layers keeps as many units, so that one config tells it all.

For a model made from a config, the class itself is asked which widths a config can tell: fields are made smaller, one
by one and together, the class is built, and the sizes of all its tensors and integers say which groups would have
become smaller. Fields and groups that shrink in proportion are a `Move`. Whatever rules a family has (the hidden size a
multiple of the heads, key-value heads that divide the heads) come out as moves: what breaks them can not be built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import gcd

from bough.graph import Graph
from bough.planning.recipe import Build, Field, Recipe
from bough.planning.widths import Widths
from bough.tracing.held import read
from bough.tracing.provenance import Path

_UNSAID = "uniform=True: no integer of the model's config sets its width alone, with all else as it is"


@dataclass(frozen=True, slots=True)
class Move:
    """Fields of the config and groups that change in proportion."""

    fields: tuple[Field, ...]
    groups: tuple[str, ...]


class Uniform:
    """What a uniform plan of a graph has to observe.

    Attributes:
        classes: names of groups that are cut in proportion.
        held: names of groups that no config can tell another width of -> why.
        tells: whether the model is made from a config, so that `attributes` can be asked.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.classes: list[tuple[str, ...]] = _places(graph)
        self.held: dict[str, str] = {}
        self._recipe = Recipe.of(graph.model)
        self.tells = self._recipe is not None
        self._moves: list[Move] = []
        self._values: dict[Field, int] = {}  # of all fields that matter, those made explicit included
        self._explicit: dict[Field, int] = {}  # fields that were None, and what they stand for
        if self._recipe is not None:
            self._widths = Widths(graph)
            self._kinds = {g.name: g.kind for g in graph.groups}
            self._start = self._read(self._recipe, {})
            self._moves = self._find(self._recipe)
            self.classes += [m.groups for m in self._moves]
            told = {g for m in self._moves for g in m.groups}
            self.held = {g.name: _UNSAID for g in graph.groups if g.name not in told}

    def within(self, graph: Graph) -> tuple[list[list[str]], dict[str, str]]:
        """(classes, held) of the groups that are left in `graph`, the same without some of its layers."""
        there = {g.name for g in graph.groups}
        classes = [[n for n in names if n in there] for names in self.classes]
        return [c for c in classes if c], {n: why for n, why in self.held.items() if n in there}

    def attributes(self, counts: Mapping[str, int]) -> tuple[dict[Path, int], dict[str, str]]:
        """(integers that the model's modules and config must be told, groups to hold -> why) at these counts.

        The integers are those that the class itself gives its modules when it is built from the new config.
        """
        assert self._recipe is not None
        kept = {m: self._kept(m, counts) for m in self._moves}
        cut = [m for m in self._moves if kept[m] != 1]
        if not cut:
            return {}, {}
        made = self._fit(cut, kept)
        if made is None:
            alone = [m for m in cut if self._fit([m], kept) is None]
            why = "uniform=True: the model's class can not be built with this width"
            return {}, {g: why for m in alone or cut[-1:] for g in m.groups}
        start = self._recipe.build({})
        assert start is not None
        told = {p: n for p, n in made.integers.items() if start.integers.get(p) != n and _holds(self.graph, p)}
        return told, {}

    def _kept(self, move: Move, counts: Mapping[str, int]) -> Fraction:
        """The share that a move's groups keep; those of layers that are left out do not count."""
        return next((Fraction(counts[g], self._widths.size(g)) for g in move.groups if g in counts), Fraction(1))

    def _fit(self, moves: Sequence[Move], kept: Mapping[Move, Fraction]) -> Build | None:
        """The class built at the shares of some moves, all else as it is; None where it is not what the cut leaves."""
        assert self._recipe is not None
        values: dict[Field, Fraction] = {f: Fraction(n) for f, n in self._values.items()}
        wanted: dict[str, Fraction] = {}
        for move in moves:
            wanted.update({g: kept[move] * self._widths.size(g) for g in move.groups})
            values.update({f: values[f] * kept[move] for f in move.fields})
        if any(n.denominator != 1 for n in (*values.values(), *wanted.values())):
            return None
        made = self._recipe.build({f: int(n) for f, n in values.items() if f in self._explicit or n != self._values[f]})
        counts = {g: int(n) for g, n in wanted.items()}
        fits = made is not None and made.derives_alike(self._start) and self._widths.agree(made, counts)
        return made if fits else None

    def _read(self, recipe: Recipe, changes: Mapping[Field, int]) -> Build:
        made = recipe.build(changes)
        assert made is not None  # a recipe can be built as it is
        return made

    def _find(self, recipe: Recipe) -> list[Move]:
        fields = recipe.fields()
        self._values = {f: n for f, n in fields.items() if n is not None and self._matters(recipe, f, n)}
        for field in (f for f, n in fields.items() if n is None):
            self._make_explicit(recipe, field)
        found: dict[tuple[Field, ...], Move] = {}
        items = self._items()
        for item in items:
            self._try(recipe, item, found)
        for a, b in combinations(items, 2):
            both = tuple(sorted({*a, *b}))
            if len(both) == len(a) + len(b) and not all(self._settled(found.get(x)) for x in (a, b)):
                self._try(recipe, both, found)
        chosen: list[Move] = []
        taken: set[str] = set()
        for move in sorted(found.values(), key=lambda m: (not self._settled(m), len(m.groups), len(m.fields))):
            if not taken & {*move.groups}:
                chosen.append(move)
                taken |= {*move.groups}
        return chosen

    def _settled(self, move: Move | None) -> bool:
        """Whether a move leaves what one head sees as it is: preferred, where a width can follow heads or their size."""
        return move is not None and all(self._kinds[g] != "head_dim" for g in move.groups)

    def _items(self) -> list[tuple[Field, ...]]:
        """Fields one by one, those of one value together, and those of one list together."""
        single = [(f,) for f in self._values]
        equal: dict[int, list[Field]] = {}
        lists: dict[Field, list[Field]] = {}
        for field, n in self._values.items():
            equal.setdefault(n, []).append(field)
            if field[-1].isdigit():
                lists.setdefault(field[:-1], []).append(field)
        several = [tuple(sorted(x)) for x in (*equal.values(), *lists.values()) if len(x) > 1]
        return list(dict.fromkeys([*single, *several]))

    def _try(self, recipe: Recipe, fields: tuple[Field, ...], found: dict[tuple[Field, ...], Move]) -> None:
        by = _least_factor(gcd(*(self._values[f] for f in fields)))
        if by == 1:
            return
        made = recipe.build({**self._explicit, **{f: self._values[f] // by for f in fields}})
        if made is None or not made.derives_alike(self._start):
            return
        counts = self._widths.of(made)
        cut = {} if counts is None else {g: n for g, n in counts.items() if n != self._widths.size(g)}
        if cut and all(n * by == self._widths.size(g) for g, n in cut.items()):
            found[fields] = Move(fields, tuple(cut))

    def _matters(self, recipe: Recipe, field: Field, value: int) -> bool:
        """Whether a field decides widths: made smaller, it changes some (or is refused), and leaves no tensor out."""
        made = recipe.build({field: value // _least_factor(value)})
        if made is None:
            return True
        if made.shapes.keys() < self._start.shapes.keys():
            return False
        return made.shapes != self._start.shapes or _apart(made, field) != _apart(self._start, field)

    def _make_explicit(self, recipe: Recipe, field: Field) -> None:
        """Finds the width that a field of None stands for, if it does for one."""
        for size in sorted({g.size for g in self.graph.groups}):
            by = _least_factor(size)
            made = recipe.build({**self._explicit, field: size // by})
            if made is not None and made.shapes == self._start.shapes:
                return
            same = recipe.build({**self._explicit, field: size})
            if made is not None and same is not None and same.shapes == self._start.shapes and self._widths.of(made):
                self._explicit[field] = self._values[field] = size
                return


def _places(graph: Graph) -> list[tuple[str, ...]]:
    """Groups of one kind and size whose names differ in numbers only."""
    found: dict[tuple[str, str, int], list[str]] = {}
    for g in graph.groups:
        found.setdefault((re.sub(r"\d+", "#", g.name), g.kind, g.size), []).append(g.name)
    return [tuple(names) for names in found.values() if len(names) > 1]


def _apart(build: Build, field: Field) -> dict[Path, int]:
    """The integers other than the field itself."""
    return {p: n for p, n in build.integers.items() if p[-len(field) :] != field}


def _holds(graph: Graph, path: Path) -> bool:
    try:
        read(graph.model, path)
    except (AttributeError, KeyError, IndexError, ValueError):
        return False
    return True


def _least_factor(n: int) -> int:
    """The smallest prime that divides n; 1 for n below 2."""
    return next((p for p in range(2, int(n**0.5) + 1) if n % p == 0), max(n, 1))
