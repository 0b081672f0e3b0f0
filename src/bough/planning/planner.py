"""`plan`: counts from a budget, indices from scores, checked against the model's own Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bough.arguments import check_arguments
from bough.cost import EnergyModel
from bough.errors import ConflictError, PlanError
from bough.graph import Graph
from bough.latency import LatencyTable
from bough.planning.alignment import aligned
from bough.planning.allocation import Allocator, Allowed, allocator
from bough.planning.attributes import SizeAttributes
from bough.planning.budget import Budget, Goal, LeastOfTied, priced
from bough.planning.config_widths.uniform import Uniform
from bough.planning.constraints.equations import Ties, ties
from bough.planning.constraints.isolate import isolate
from bough.planning.counting import Counting
from bough.planning.depth import chosen, left_out, widths
from bough.planning.draft import Draft, chosen_units
from bough.planning.named import by_group, groups_left_whole, least
from bough.planning.options import OnConflict, Options
from bough.planning.plan import Plan
from bough.planning.ragged import Differing, differing
from bough.planning.refused_counts import Learned, learned
from bough.tracing.capture.run import uncollected
from bough.tracing.selection import Selection, left_alone
from bough.tracing.typing.ties import tied_pairs

_ROUNDS = 8  # conflicts from which counts of a group are learned; at the next one the group is frozen


def plan(
    graph: Graph,
    scores: Mapping[str, NDArray[np.float64]],
    budget: Budget | None = None,
    *,
    keep: float | Mapping[Any, float] | None = None,
    allocation: str | Allocator = "global",
    round_to: int | str = 1,
    minimum: float | Mapping[Any, float] = 1,
    drop: Iterable[str] = (),
    ignore: Selection = (),
    only: Selection | None = None,
    exact_only: bool = False,
    uniform: bool = False,
    ragged: bool = False,
    on_conflict: str = "freeze",
    table: LatencyTable | None = None,
    energy: EnergyModel | None = None,
) -> Plan:
    """Decide what stays: the largest plan that meets `budget`, or the counts that `keep` gives.

    Args:
        graph: of the model to cut.
        scores: one array [units] per group name, as from `score`; low scores go first.
        budget: upper bounds on what remains.
        keep: instead of a budget: a share (0..1] of every group, or {group or pattern such as "layer1.*": a whole number of
            units, or a share below 1}, of which the last that fits a group counts; {list of layers: number of layers}. Groups
            that the model's Python ties to each other keep one share: one of them is enough. A module, a type of modules, or
            the name or pattern of modules stands for the groups whose units nothing else computes, as for `only`.
        allocation: how the budget is met, by name or as an allocator with options of its own: "global" ranks all units
            together, each relative to its group's mean; "uniform" cuts all groups by the same share; "isomorphic" ranks
            among groups of equal form; "greedy" goes by importance lost per cost saved; "knapsack" and "milp" solve for it;
            "error" is greedy for scores that are errors, such as OBS and ThiNet give.
        round_to: widths that are cut become multiples of this (heads, counted one by one, excepted): a number, or the name
            of what they are to suit (see `ALIGNMENTS`).
        minimum: least units kept per group: a number of units, or a share below 1; for all groups, or {group or pattern such
            as "layer1.*": number}, of which the last that fits a group counts; modules as for `keep`.
        drop: names of layers to leave out (see `graph.layers`); what remains of the budget is met by widths.
        ignore, only: what to leave alone, and what alone to cut: names, glob patterns, modules and types of modules, as for
            `trace`.
        exact_only: leave groups over which a statistic runs (LayerNorm, mean, softmax).
        uniform: groups in the same place of repeated layers keep as many units (each its own), and where the model is
            made from a config, only widths that the config can tell are cut: stock classes load what is saved.
        ragged: where the types allow it (see `graph.ragged`), each head keeps head dims of its own, each convolution group
            channels of its own, as many as the others; by the scores under `Ragged.scores`. `plan.ragged` says where it
            was done, `plan.alike` why elsewhere not.
        on_conflict: "freeze" leaves groups whose cut the model's Python contradicts, and plans again; "raise" raises;
            "rebuild" plans without regard to the model's Python (no group is tied to another by its integers): where the
            two do not agree, the plan says so in `Plan.rebuild`, and `bough.rebuild` carries it out in place of `cut`.
        table: of times, for a budget of latency; with it the plan's costs tell the latency. What it predicts is not yet
            what is measured: `prune` and `meet_latency` correct it by measuring the cut model.
        energy: constants for a budget of energy; `EnergyModel.of("float32")` (or the budget's precision) unless given.

    Raises:
        BudgetError: the budget can not be reached; the message names what is frozen and the best reachable.
        PlanError: no group can be cut, `keep` gives tied groups different shares, or a name in `ignore`, `only`, `keep`,
            `minimum` or `drop` names nothing.
        ConflictError: the model's Python contradicts the plan, and `on_conflict="raise"`.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> bough.plan(graph, bough.score(graph, "l2"), bough.Budget(params="50%")).groups
        {'0': (3, 8)}
    """
    check_arguments(plan, locals())
    goal = budget if keep is None else keep
    if goal is None or (budget is not None and keep is not None):
        raise PlanError("plan needs either a budget or keep, and not both")
    options = Options(
        allocation=allocation, round_to=round_to, minimum=minimum, drop=drop, ignore=ignore, only=only,
        exact_only=exact_only, uniform=uniform, ragged=ragged, on_conflict=on_conflict, table=table, energy=energy,
    )  # fmt: skip
    return planned(graph, scores, goal, options)


@uncollected()
def planned(graph: Graph, scores: Mapping[str, NDArray[np.float64]], goal: Goal, options: Options) -> Plan:
    """`plan`, of a goal and options that are one value each."""
    if isinstance(goal, Mapping) and not isinstance(goal, LeastOfTied):
        goal = by_group(graph, goal, "keep")
    minimum = by_group(graph, options.minimum, "minimum") if isinstance(options.minimum, Mapping) else options.minimum
    fewest = least(graph.groups, minimum)
    rest = left_out(graph, chosen(graph, options.drop, goal, scores))
    uniform = Uniform(graph) if options.uniform else None
    rest = uniform.relayered(rest) if uniform else rest
    alone = {**dict.fromkeys(options.whole, "better left whole"), **left_alone(graph, options.ignore, options.only)}
    stay = groups_left_whole(rest, alone, options.exact_only)
    free = differing(rest, scores, options.ragged)
    prices = priced(goal, options.table, options.energy)
    counting = Counting(
        rest,
        prices.form(rest),
        prices.form(graph).cost(),
        free.ranked(scores),
        widths(graph, goal),
        allocator(options.allocation),
    )
    found = _Search(
        rest, scores, counting, Allowed(aligned(options.round_to), fewest), uniform, free, options.on_conflict
    ).agreed(stay)
    _, untied = tied_pairs(graph.model, dict(graph.tie))
    return replace(found, notes=(*found.notes, *prices.notes(), *untied))


@dataclass(frozen=True, eq=False, slots=True)
class _Search:
    """The search for a plan that the model's own Python agrees with."""

    graph: Graph
    scores: Mapping[str, NDArray[np.float64]]
    counting: Counting
    allowed: Allowed
    uniform: Uniform | None
    free: Differing
    on_conflict: str

    def agreed(self, frozen: dict[str, str]) -> Plan:
        """Plan again, with counts refused and groups frozen that the model's Python contradicts, until nothing contradicts."""
        allowed, rounds, contradicted = self.allowed, Counter[str](), False
        tries = (len(self.graph.groups) + 1) * (_ROUNDS + 1) + (self.uniform.patience if self.uniform else 0)
        for _ in range(tries):
            tied = self._tied(frozen)
            allowed = replace(allowed, steps=self.uniform.steps if self.uniform else {})
            found = self.counting(tied, allowed)
            draft = self._draft(found.counts)
            if draft is None:
                continue  # the model's class refuses these widths, and `uniform` is stricter now
            if not draft.conflicts:
                return self._finished(draft, tied, (found.note, *_refusals(allowed)))
            if not contradicted:
                self._check_traced()
                contradicted = True
            if self.on_conflict == OnConflict.REBUILD:
                return replace(self._finished(draft.for_rebuild(), tied, (found.note,)), rebuild=True)
            if self.on_conflict == OnConflict.RAISE:
                conflicts = "; ".join(dict.fromkeys(map(str, draft.conflicts)))
                raise ConflictError(f"the model's Python contradicts the plan: {conflicts}")
            why = _blamed(draft, frozen) or isolate(self.graph, draft.sizes, tied, str(draft.conflicts[0]))
            known = self._learned(draft, {n for n in why if rounds[n] < _ROUNDS}, tied, allowed)
            rounds.update([*known.refused])
            allowed = replace(allowed, refused=_joined(allowed.refused, known.refused))
            fresh = {n: w for n, w in why.items() if not known.refused or n in known.unmet or rounds[n] >= _ROUNDS}
            frozen = {**tied.frozen, **frozen, **fresh}
        raise ConflictError("no plan agrees with the model's Python")

    def _learned(self, draft: Draft, blamed: set[str], tied: Ties, allowed: Allowed) -> Learned:
        """Return what other counts of the blamed groups show; nothing where a config has to tell the counts."""
        if self.uniform and self.uniform.has_config:
            return Learned({}, frozenset())
        return learned(self.graph, draft.counts, blamed, tied, allowed, self._draft)

    def _check_traced(self) -> None:
        """Whether it is the plan that the model's Python contradicts, or already what was traced."""
        whole = self._draft({g.name: g.size for g in self.graph.groups})
        if whole is not None and whole.conflicts:
            raise ConflictError(
                f"{type(self.graph.model).__name__} does not run as it was traced ({whole.conflicts[0]}). If the model was "
                "changed since it was traced, by an option such as use_cache in a config, or by a call that left state on it, "
                "trace it again"
            )

    def _tied(self, frozen: Mapping[str, str]) -> Ties:
        graph, uniform = self.graph, self.uniform
        binding = replace(graph, equations=()) if self.on_conflict == OnConflict.REBUILD else graph
        unsaid = {g.name: uniform.frozen[g.name] for g in graph.groups if g.name in uniform.frozen} if uniform else {}
        return ties(binding, {**unsaid, **frozen}, uniform.within(graph) if uniform else [])

    def _draft(self, counts: Mapping[str, int]) -> Draft | None:
        """None where no config of the model has these counts."""
        settings = None
        if self.uniform and self.uniform.has_config:
            settings = self.uniform.settings_at(counts)
            if settings is None:
                return None
        kept = {**chosen_units(self.graph, self.scores, counts), **self.free.chosen(self.graph, counts)}
        return Draft.of(self.graph, counts, kept, settings)

    def _finished(self, draft: Draft, tied: Ties, notes: Iterable[str]) -> Plan:
        if not (self.on_conflict == OnConflict.REBUILD and draft.conflicts) and not (self.uniform and self.uniform.has_config):
            draft = draft.following(SizeAttributes(self.graph))
        plan = draft.plan(tied, self.counting.cost(draft.counts), self.counting.original)
        return replace(self.free.noted(plan), notes=tuple(n for n in notes if n))


def _blamed(draft: Draft, frozen: Mapping[str, str]) -> dict[str, str]:
    """The groups that the conflicts themselves name."""
    fresh: dict[str, str] = {}
    for conflict in draft.conflicts:
        for g in draft.graph.groups:
            if g.atom in conflict.atoms and g.name not in frozen:
                fresh.setdefault(g.name, str(conflict))
    return fresh


def _joined(one: Mapping[str, frozenset[int]], other: Mapping[str, frozenset[int]]) -> dict[str, frozenset[int]]:
    return {n: one.get(n, frozenset()) | other.get(n, frozenset()) for n in {**one, **other}}


def _refusals(allowed: Allowed) -> tuple[str, ...]:
    """Say which counts the model's Python contradicts."""
    refused = {name: ", ".join(map(str, sorted(counts))) for name, counts in allowed.refused.items()}
    return tuple(
        f"{name} can not have a count of {counts}: the model's Python contradicts it" for name, counts in refused.items()
    )
