"""Which fields of a config set which groups' widths: found by asking the class, not by knowing families.

Fields are divided by a prime factor, alone and together with others, and the class builds a model of each. If exactly those
sizes are smaller in it that a cut of some groups by the same factor makes smaller, the fields and these groups form a `Move`:
they change in proportion. Conditions of a model family (a hidden size that is a multiple of the heads, key-value heads that
divide the heads) need no rule here: a config that breaks them cannot be built, or gives other sizes than a cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import gcd

from bough.graph import Graph, GroupKind
from bough.planning.config_widths.config import Field
from bough.planning.config_widths.recipe import Build, Recipe
from bough.planning.config_widths.widths import Widths

_MOST_TOGETHER = 3
_PATIENCE = 3  # a field that refuses so many widths of the model stands for none
Fields = tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """Fields of the config and groups that change in proportion.

    `derives`: the class computes other floats at these sizes (a scale from a head's width), which are then corrected.
    """

    fields: Fields
    groups: tuple[str, ...]
    derives: bool


class Moves:
    """The moves of a model made from a config; `chosen` are those that are used, at most one for each group.

    Attributes:
        values: field -> its integer; for `explicit` fields, the integer that the class uses.
        explicit: fields that are None or absent -> the integer that the class uses in their place.
        start: the model that the class builds from the unchanged config.
    """

    def __init__(self, graph: Graph, recipe: Recipe, widths: Widths) -> None:
        self._recipe, self._widths = recipe, widths
        self._kinds = {g.name: g.kind for g in graph.groups}
        self._touched: dict[Field, frozenset[str]] = {}  # by each field alone, where it is built at all
        self._beside: dict[Field, frozenset[str]] = {}  # the same of those that also set what is no group's
        self._found: dict[Fields, Move] = {}
        self.start = recipe.make({})
        self.explicit: dict[Field, int] = {}
        self.values = self._deciding()
        self._search()
        self.chosen = self._disjoint()

    def build(self, fields: Mapping[Field, int]) -> Build | None:
        """Build the class with these fields; the others are unchanged."""
        return self._recipe.build({**self.explicit, **fields})

    def unsaid(self, group: str) -> str:
        """Return why no move has `group`."""
        for fields, but in (
            (self._beside, "and also what has to stay"),
            (self._touched, "only along with others"),
        ):
            names = [".".join(f) for f, groups in fields.items() if group in groups]
            if names:
                return f"uniform=True: in the config, {' and '.join(names)} decides its width, {but}"
        return "uniform=True: no integer of the config sets its width"

    def _deciding(self) -> dict[Field, int]:
        """The fields that may set groups' widths, with their values."""
        fields = self._recipe.fields()
        values = {f: n for f, n in fields.items() if n is not None}
        for field in (f for f, n in fields.items() if n is None):
            self._make_explicit(field)
        values.update(self.explicit)
        return {f: n for f, n in values.items() if self._decides(f, n)}

    def _make_explicit(self, field: Field) -> None:
        """Finds the width that an absent field stands for: set to it, it changes nothing; set to others, it does."""
        same: list[int] = []
        others = refused = 0
        for size in sorted({self._widths.size(g) for g in self._kinds}):
            made = self.build({field: size})
            refused += made is None
            if refused == _PATIENCE:
                return
            if made is None:
                continue
            if made.shapes.keys() != self.start.shapes.keys():  # it switches parts on and off
                return
            alike = made.shapes == self.start.shapes and not made.floats_unlike(self.start) and made.computes_alike(self.start)
            same += [size] if alike else []
            others += not alike
            if len(same) > 1:  # it sets nothing
                return
            if same and others:
                self.explicit[field] = same[0]
                return

    def _decides(self, field: Field, value: int) -> bool:
        made = self.build({field: value // _primes(value)[0]})
        if made is None:
            return True  # it may be built together with others
        self._touched[field], only = self._widths.touched(made)
        if not only:
            self._beside[field] = self._touched[field]
        return bool(self._touched[field])  # what it sets beside groups, another field may set back

    def _search(self) -> None:
        """Tries fields one by one, lists of them, and more together while there are groups that no move has."""
        lists: dict[Field, list[Field]] = {}
        for field in self.values:
            if field[-1].isdigit():
                lists.setdefault(field[:-1], []).append(field)
        items: list[Fields] = [*((f,) for f in self.values), *(tuple(x) for x in lists.values() if len(x) > 1)]
        for n in range(1, _MOST_TOGETHER + 1):
            if {g for m in self._found.values() for g in m.groups} >= self._kinds.keys():
                return
            for together in combinations(items, n):
                fields = tuple(f for item in together for f in item)
                if len({*fields}) == len(fields) and self._worthwhile(together):
                    self._try(fields, any_factor=n == 1)

    def _worthwhile(self, items: tuple[Fields, ...]) -> bool:
        """Whether items may need each other: they have to do with the same groups, and are no moves as they are."""
        if len(items) == 1:
            return True
        settled = [self._settled(self._found.get(x)) for x in items]
        smaller = [self._found.get(tuple(f for x in part for f in x)) for part in combinations(items, len(items) - 1)]
        if all(settled) or (len(items) > 2 and any(self._settled(m) for m in smaller)):
            return False
        reach = [frozenset().union(*(self._touched.get(f, self._kinds.keys()) for f in x)) for x in items]
        joined = {0}
        for _ in items:
            joined |= {i for i, a in enumerate(reach) if any(a & reach[j] for j in joined)}
        return len(joined) == len(items)

    def _settled(self, move: Move | None) -> bool:
        """Whether a move leaves what one head sees as it is: preferred, where a width can follow heads or their size."""
        return move is not None and not move.derives and all(self._kinds[g] is not GroupKind.HEAD_DIM for g in move.groups)

    def _try(self, fields: Fields, any_factor: bool) -> None:
        for by in _primes(gcd(*(self.values[f] for f in fields)))[: None if any_factor else 1]:
            made = self.build({f: self.values[f] // by for f in fields}) if by > 1 else None
            if made is None or not made.computes_alike(self.start):
                continue
            counts = self._widths.of(made) or {}
            cut = {g: n for g, n in counts.items() if n != self._widths.size(g)}
            if cut and all(n * by == self._widths.size(g) for g, n in cut.items()):
                self._found[fields] = Move(fields, tuple(cut), bool(made.floats_unlike(self.start)))
                return

    def _disjoint(self) -> tuple[Move, ...]:
        """Of the moves found, such that no group is in two: the finest, but a wider one where it has more groups."""
        order = sorted(self._found.values(), key=lambda m: (m.derives, not self._settled(m), len(m.groups), len(m.fields)))
        chosen: list[Move] = []
        for move in [*order, *order]:
            rivals = [m for m in chosen if {*m.groups} & {*move.groups}]
            if move not in chosen and (not rivals or self._weight(move) > sum(map(self._weight, rivals))):
                chosen = [m for m in chosen if m not in rivals] + [move]
        return tuple(chosen)

    def _weight(self, move: Move) -> int:
        """The groups of a move; heads count, and what one head sees does not."""
        return sum(self._kinds[g] is not GroupKind.HEAD_DIM for g in move.groups)


def _primes(n: int) -> list[int]:
    """The primes that divide n, ascending; [1] for n below 2."""
    return list(_factors(n)) or [1]


def _factors(n: int) -> Iterator[int]:
    p = 2
    while n > 1:
        if p * p > n:
            p = n
        if n % p == 0:
            yield p
        while n % p == 0:
            n //= p
        p += 1
