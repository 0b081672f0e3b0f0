"""Uniform plans: what occupies the same place in repeated layers keeps as many units, so that one config describes them all.

For a model made from a config, the class itself is asked which widths a config can tell (see `moves`). Fields and groups
then change in proportion, by as many steps as all of them allow; a share that the class can not be built at makes these
steps coarser. The numbers that the cut model gets are those that the class gives its modules at the new config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, gcd

from bough.errors import PlanError
from bough.graph import Graph
from bough.planning.config_widths.moves import Move, Moves
from bough.planning.config_widths.recipe import Build, Recipe
from bough.planning.config_widths.relayer import relayered
from bough.planning.config_widths.widths import Widths
from bough.tracing.capture.attribute_numbers import holds
from bough.tracing.capture.provenance import Path

Shares = Mapping[Move, Fraction]


@dataclass(frozen=True, slots=True)
class ConfigSettings:
    """What a config with some widths makes of a model.

    `numbers`: what its modules and its config get. `idle`: (name, dim) of what nothing in the run comes of, and that
    the class makes smaller -> the group whose units stay there (None: the first ones do), and how many.
    """

    numbers: dict[Path, float]
    idle: dict[tuple[str, int], tuple[str | None, int]]


class Uniform:
    """What a uniform plan of a graph has to observe; it grows stricter where the model's class refuses a plan.

    Attributes:
        classes: names of groups that are cut in proportion.
        frozen: names of groups that no config can tell another width of -> why.
        steps: group name -> into how many equal steps its units may be divided.
        has_config: whether the model is made from a config, so that `settings_at` can be asked.

    Raises:
        PlanError: the model holds a config that does not say what it is, or that can tell no other width.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.frozen: dict[str, str] = {}
        self._recipe = recipe = Recipe.of(graph.model)
        self.has_config = recipe is not None
        if recipe is None:
            self.classes, self._steps = _places(graph), {}
            return
        self._widths = Widths(graph)
        self._moves = Moves(graph, recipe, self._widths)
        moves = self._moves.chosen
        self.classes = [m.groups for m in moves]
        said = {g for m in moves for g in m.groups}
        self.frozen = {g.name: self._moves.unsaid(g.name) for g in graph.groups if g.name not in said}
        if self.frozen and not moves:
            name, why = next(iter(self.frozen.items()))
            raise PlanError(
                f"no integer of {type(graph.model).__name__}'s config can tell a smaller width ({name}: {why}). Plan without "
                "uniform=True, and keep the model with bough.save and bough.load"
            )
        self._steps = {
            m: gcd(*(self._widths.size(g) for g in m.groups), *(self._moves.values[f] for f in m.fields)) for m in moves
        }

    @property
    def steps(self) -> dict[str, int]:
        return {g: n for m, n in self._steps.items() for g in m.groups}

    @property
    def patience(self) -> int:
        """How often `settings_at` may refuse."""
        return sum(n.bit_length() for n in self._steps.values())

    def within(self, graph: Graph) -> list[list[str]]:
        """The classes of the groups that are left in `graph`, the same without some of its layers."""
        there = {g.name for g in graph.groups}
        classes = [[n for n in names if n in there] for names in self.classes]
        return [c for c in classes if c]

    def relayered(self, graph: Graph) -> Graph:
        """The same graph without some layers, with notes of them as the class makes them.

        Raises:
            PlanError: no config can say that these layers are left out.
        """
        return relayered(graph, self._recipe, self._moves.start) if self._recipe is not None and graph.left_out else graph

    def settings_at(self, counts: Mapping[str, int]) -> ConfigSettings | None:
        """What the model must get, and what is to be done beside cutting groups, at these counts.

        None where the class can not be built so; then `steps` or `frozen` have become stricter.
        """
        shares = {m: self._share(m, counts) for m in self._moves.chosen}
        cut = {m: share for m, share in shares.items() if share != 1}
        if not cut:
            return ConfigSettings({}, {})
        made = self._fit(cut)
        if made is None:
            for move in [m for m in cut if self._fit({m: cut[m]}) is None] or [*cut][-1:]:
                self._make_coarser(move, cut[move])
            return None
        start = self._moves.start
        numbers: dict[Path, float] = {p: n for p, n in made.integers.items() if start.integers.get(p) != n}
        explicit = {("", "config", *f) for f in self._moves.explicit}
        numbers = {
            p: n for p, n in {**numbers, **made.floats_unlike(start)}.items() if p in explicit or holds(self.graph.model, p)
        }
        return ConfigSettings(numbers, self._idle(made, counts))

    def _idle(self, made: Build, counts: Mapping[str, int]) -> dict[tuple[str, int], tuple[str | None, int]]:
        """What nothing comes of is cut as the widest-reaching group of its size is."""
        groups = sorted((g for g in self.graph.groups if g.name in counts), key=lambda g: -len(g.members))
        result: dict[tuple[str, int], tuple[str | None, int]] = {}
        for (name, dim), before in self._widths.idle.items():
            after = made.shapes[name][dim]
            if before != after:
                like = next((g.name for g in groups if (g.size, counts[g.name]) == (before, after)), None)
                result[name, dim] = like, after
        return result

    def _share(self, move: Move, counts: Mapping[str, int]) -> Fraction:
        """The share that a move's groups keep; those of layers that are left out do not count."""
        return next((Fraction(counts[g], self._widths.size(g)) for g in move.groups if g in counts), Fraction(1))

    def _fit(self, shares: Shares) -> Build | None:
        """The class built at these shares, all else as it is; None where it is not what the cut leaves."""
        start = self._moves.values
        values = {f: Fraction(n) for f, n in start.items()}
        wanted: dict[str, Fraction] = {}
        for move, share in shares.items():
            wanted.update({g: share * self._widths.size(g) for g in move.groups})
            values.update({f: values[f] * share for f in move.fields})
        if any(n.denominator != 1 for n in (*values.values(), *wanted.values())):
            return None
        made = self._moves.build({f: int(n) for f, n in values.items() if n != start[f]})
        counts = {g: int(n) for g, n in wanted.items()}
        fits = made is not None and made.computes_alike(self._moves.start) and self._widths.agree(made, counts)
        return made if fits else None

    def _make_coarser(self, move: Move, share: Fraction) -> None:
        """Takes the most steps, fewer than before, of which those next to `share` on both sides can be built."""
        for steps in range(self._steps[move] // 2, 1, -1):
            beside = {max(int(share * steps), 1), min(ceil(share * steps), steps - 1)}
            fits = (self._fit({move: Fraction(n, steps)}) is not None for n in beside)
            if self._steps[move] % steps == 0 and all(fits):
                self._steps[move] = steps
                return
        self._steps[move] = 1
        self.frozen.update(dict.fromkeys(move.groups, "uniform=True: the model's class can not be built with another width"))


def _places(graph: Graph) -> list[tuple[str, ...]]:
    """Groups of one kind and size whose names differ in numbers only."""
    found: dict[tuple[str, str, int], list[str]] = {}
    for g in graph.groups:
        found.setdefault((re.sub(r"\d+", "#", g.name), g.kind, g.size), []).append(g.name)
    return [tuple(names) for names in found.values() if len(names) > 1]
