"""`plan`: counts from a budget, indices from scores, checked against the model's own Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from bough.cost import ClosedForm, Cost, EnergyModel, LatencyTable, shown
from bough.errors import BudgetError, ConflictError, PlanError
from bough.graph import Graph, Group
from bough.planning.alignment import aligned
from bough.planning.allocation import Allocation, Allocator, Allowed, allocator, columns, unit_scores
from bough.planning.budget import Budget, priced
from bough.planning.depth import chosen, left_out, widths
from bough.planning.equations import Ties, solve, ties
from bough.planning.fold import fold
from bough.planning.isolate import isolate
from bough.planning.named import instead, least
from bough.planning.plan import Plan, Scale
from bough.planning.ragged import differing
from bough.planning.uniform import Told, Uniform
from bough.spaces import Atom, Each, Kept, indices
from bough.tracing.provenance import Path
from bough.tracing.replay import Conflict, replay


def plan(
    graph: Graph,
    scores: Mapping[str, NDArray[np.float64]],
    budget: Budget | None = None,
    *,
    keep: float | Mapping[str, int] | None = None,
    allocation: str | Allocator = "global",
    round_to: int | str = 1,
    minimum: float | Mapping[str, float] = 1,
    drop: Iterable[str] = (),
    ignore: Iterable[str] = (),
    exact_only: bool = False,
    uniform: bool = False,
    ragged: bool = False,
    on_conflict: str = "freeze",
    table: LatencyTable | None = None,
    energy: EnergyModel | None = None,
) -> Plan:
    """Decides what stays: the largest plan that meets `budget`, or the counts that `keep` gives.

    Args:
        graph: of the model to cut.
        scores: one array [units] per group name, as from `score`; low scores go first.
        budget: upper bounds on what remains.
        keep: instead of a budget: a share (0..1] of every group, or {group or list of layers: how many to keep}.
        allocation: how the budget is met, by name or as an allocator with options of its own: "global" ranks all units
            together, each relative to its group's mean; "uniform" cuts all groups by the same share; "isomorphic" ranks
            among groups of equal form; "greedy" goes by importance lost per cost saved; "knapsack" and "milp" solve for it;
            "error" is greedy for scores that are errors, such as OBS and ThiNet give.
        round_to: widths that are cut become multiples of this (heads, counted one by one, excepted): a number, or the name
            of what they are to suit (see `ALIGNMENTS`).
        minimum: least units kept per group: a number of units, or a share below 1; for all groups, or {group or pattern such
            as "layer1.*": number}, of which the last that fits a group counts.
        drop: names of layers to leave out (see `graph.layers`); what remains of the budget is met by widths.
        ignore: names of groups, modules or parameters to leave.
        exact_only: leave groups over which a statistic runs (LayerNorm, mean, softmax).
        uniform: groups in the same place of repeated layers keep as many units (each its own), and where the model is
            made from a config, only widths that the config can tell are cut: stock classes load what is saved.
        ragged: where the types allow it (see `graph.ragged`), each head keeps head dims of its own, each convolution group
            channels of its own, as many as the others; by the scores under `Ragged.scores`. `plan.ragged` tells where it
            was done, `plan.alike` why elsewhere not.
        on_conflict: "freeze" leaves groups whose cut the model's Python contradicts, and plans anew; "raise" raises;
            "rebuild" plans without regard to the model's Python (no group is tied to another by its integers): where the
            two do not agree, the plan says so in `Plan.rebuild`, and `bough.rebuild` carries it out in place of `cut`.
        table: of times, for a budget of latency; with it the plan's costs tell the latency. What it predicts is not yet
            what is measured: `prune` and `meet_latency` correct it by measuring the cut model.
        energy: constants for a budget of energy; `EnergyModel.of("float32")` (or the budget's precision) unless given.

    Raises:
        BudgetError: the budget can not be reached; the message names what is frozen and the best reachable.
        PlanError: no group can be cut, or a name in `ignore`, `keep`, `minimum` or `drop` names nothing.
        ConflictError: the model's Python contradicts the plan, and `on_conflict="raise"`.
    """
    if (budget is None) == (keep is None):
        raise PlanError("plan needs either a budget or keep, and not both")
    decide = allocator(allocation)
    round_to = aligned(round_to)
    if on_conflict not in ("freeze", "raise", "rebuild"):
        raise PlanError(f"on_conflict={on_conflict!r} is unknown: use 'freeze', 'raise' or 'rebuild'")
    if uniform and on_conflict == "rebuild":
        raise PlanError("uniform=True keeps a model's own class, and on_conflict='rebuild' gives it up: use one of them")
    if round_to < 1:
        raise PlanError(f"round_to={round_to} must be positive")
    fewest = least(graph.groups, minimum)
    whole, graph = graph, left_out(graph, chosen(graph, drop, keep, scores))
    keep = widths(whole, keep)
    even = Uniform(whole) if uniform else None
    graph = even.relayered(graph) if even else graph
    alike = even.within(graph) if even else []
    held = _held(graph, ignore, exact_only)
    free = differing(graph, scores, ragged)
    ranked = free.ranked(scores)
    binding = replace(graph, equations=()) if on_conflict == "rebuild" else graph
    prices = priced(budget, table, energy)
    form, original = prices.form(graph), prices.form(whole).cost()
    for _ in range(len(graph.groups) + 1 + (even.patience if even else 0)):
        tied = ties(binding, {**_unsaid(graph, even), **held}, alike)
        menu = Allowed(round_to, fewest, even.steps if even else {})
        decided = _decide(graph, form, original, ranked, budget, keep, tied, decide, menu)
        counts = decided.counts
        kept: dict[Atom, Kept] = {**_choose(graph, scores, counts), **free.chosen(graph, counts)}
        numbers = {a: len(i) for a, i in kept.items()}
        if even and even.tells:
            told = even.told(counts)
            if told is None:
                continue
        else:
            told = Told(dict(solve(graph.equations, numbers)[0]), {})
        attributes = told.numbers
        check = replay(graph, numbers, attributes)
        scales, unfolded = fold(graph, check.rescales)
        conflicts = [*check.conflicts, *unfolded]
        costs = (form.cost(form.vector(counts)), original)
        if not conflicts:
            notes = tuple(n for n in (decided.note, *prices.notes()) if n)
            return replace(free.noted(_plan(costs, graph, kept, counts, told, scales, tied)), notes=notes)
        if on_conflict == "rebuild":
            return replace(_plan(costs, graph, kept, counts, Told({}, {}), (), tied), rebuild=True)
        if on_conflict == "raise":
            raise ConflictError(
                "the model's Python contradicts the plan: " + "; ".join(dict.fromkeys(str(c) for c in conflicts))
            )
        fresh = _blamed(graph, conflicts, held) or isolate(graph, numbers, tied, str(conflicts[0]))
        held = {**tied.held, **held, **fresh}
    raise ConflictError("no plan agrees with the model's Python")


def _held(graph: Graph, ignore: Iterable[str], exact_only: bool) -> dict[str, str]:
    if not graph.groups and not graph.left_out:
        reasons = "; ".join(dict.fromkeys(f"{f.name}: {f.reason}" for f in graph.frozen[:5]))
        raise PlanError(f"no group of {type(graph.model).__name__} can be cut. {reasons or 'It has no parameters.'}")
    held: dict[str, str] = {}
    for name in (ignore,) if isinstance(ignore, str) else ignore:
        hit = [g.name for g in graph.groups if g.name == name or any(_within(m.name, name) for m in g.members)]
        if not hit and not any(_within(s, name) for s in graph.states):
            there = (*(g.name for g in graph.groups), *dict(graph.model.named_modules()), *graph.states)
            raise PlanError(f"ignore={name!r} names no group, module or parameter; {instead(name, dict.fromkeys(there))}")
        held.update(dict.fromkeys(hit, "ignored on request"))
    if exact_only:
        held.update({g.name: "a statistic runs over it, and exact_only is set" for g in graph.groups if not g.exact})
        if len(held) == len(graph.groups):
            raise PlanError("no exact group can be cut; without exact_only there are renormalizing ones")
    return held


def _unsaid(graph: Graph, even: Uniform | None) -> dict[str, str]:
    """The groups of `graph` whose width no config can tell."""
    return {g.name: even.held[g.name] for g in graph.groups if g.name in even.held} if even else {}


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _decide(
    graph: Graph, form: ClosedForm, original: Cost, scores: Mapping[str, NDArray[np.float64]], budget: Budget | None,
    keep: float | Mapping[str, int] | None, tied: Ties, decide: Allocator, menu: Allowed,
) -> Allocation:  # fmt: skip
    by_name = {g.name: g for g in graph.groups}
    classes = [[by_name[n] for n in names] for names in tied.classes]
    if keep is not None:
        return Allocation(_given(by_name, classes, keep, menu), True)
    assert budget is not None
    limits = budget.limits(original)
    found = decide(form, columns(classes, scores, menu), limits)
    if not found.met:
        best = form.cost(form.vector(found.counts))
        raise BudgetError(_unreachable(graph, original, tied, limits, best))
    return found


def _given(
    by_name: Mapping[str, Group], classes: list[list[Group]], keep: float | Mapping[str, int], menu: Allowed
) -> dict[str, int]:
    counts = {n: g.size for n, g in by_name.items()}
    if isinstance(keep, Mapping):
        unknown = [n for n in keep if n not in by_name]
        if unknown:
            raise PlanError(f"keep names {unknown[0]!r}, which is no group; {instead(unknown[0], by_name)}")
        bad = [n for n, k in keep.items() if not 1 <= k <= by_name[n].size]
        if bad:
            raise PlanError(f"keep[{bad[0]!r}]={keep[bad[0]]}: must be from 1 to {by_name[bad[0]].size}")
    elif not 0 < keep <= 1:
        raise PlanError(f"keep={keep}: a share of the units must be above 0 and at most 1")
    for groups in classes:
        counted = menu.widths(groups)
        shares = [keep[g.name] / g.size for g in groups if g.name in keep] if isinstance(keep, Mapping) else [keep]
        if shares:
            left = counted[:, 0] / counted[0, 0]
            row = int(np.flatnonzero(left >= min(shares) - 1e-9)[-1])
            counts.update({g.name: int(n) for g, n in zip(groups, counted[row], strict=True)})
    return counts


def _unreachable(graph: Graph, original: Cost, tied: Ties, limits: Mapping[str, float], best: Cost) -> str:
    reached, whole = best.to_dict(), original.to_dict()
    missed = [
        f"{k}: at most {shown(k, limit)} is asked, "
        f"the best reachable is {shown(k, reached[k])} ({reached[k] / whole[k]:.1%} of {shown(k, whole[k])})"
        for k, limit in limits.items()
        if reached[k] > limit
    ]
    stuck = [f"{f.name} ({f.reason})" for f in graph.frozen] + [f"{n} ({why})" for n, why in tied.held.items()]
    in_frozen = {m.name for f in graph.frozen for m in f.members} - {m.name for g in graph.groups for m in g.members}
    share = sum(graph.tensor(n).numel() for n in in_frozen if graph.states[n].parameter) / max(original.params, 1)
    return (
        f"the budget can not be reached. {'; '.join(missed)}. {share:.0%} of the parameters are wholly frozen; "
        f"frozen: {', '.join(stuck[:6]) or 'nothing'}{' ...' if len(stuck) > 6 else ''}. "
        "Raise the budget, or lower minimum, round_to or ignore."
    )


def _choose(
    graph: Graph, scores: Mapping[str, NDArray[np.float64]], counts: Mapping[str, int]
) -> dict[Atom, NDArray[np.int64]]:
    """The indices of the units with the highest scores, ascending, of each group that is cut."""
    kept: dict[Atom, NDArray[np.int64]] = {}
    for g in graph.groups:
        n = counts[g.name]
        if n < g.size:
            kept[g.atom] = np.sort(np.argsort(-unit_scores(scores, g), kind="stable")[:n]).astype(np.int64)
    return kept


def _blamed(graph: Graph, conflicts: list[Conflict], held: Mapping[str, str]) -> dict[str, str]:
    fresh: dict[str, str] = {}
    for conflict in conflicts:
        for g in graph.groups:
            if g.atom in conflict.atoms and g.name not in held:
                fresh.setdefault(g.name, str(conflict))
    return fresh


def _plan(
    costs: tuple[Cost, Cost], graph: Graph, kept: Mapping[Atom, Kept], counts: Mapping[str, int],
    told: Told, scales: tuple[Scale, ...], tied: Ties,
) -> Plan:  # fmt: skip
    cut: dict[str, dict[int, list[int]]] = {}
    cut_members = {(m.name, m.dim) for g in graph.groups if g.atom in kept for m in g.members}
    for name, dim in sorted(cut_members):
        cut.setdefault(name, {})[dim] = indices(graph.states[name].axes[dim], kept).tolist()
    by_name = {g.name: kept.get(g.atom) for g in graph.groups}
    for (name, dim), (like, n) in told.idle.items():
        units = by_name[like] if like else None
        cut.setdefault(name, {})[dim] = list(range(n)) if units is None or isinstance(units, Each) else units.tolist()
    values: dict[str, float] = {}
    originals = {p: v for e in graph.equations for p, v in _held_values(e.expression)}
    for path, value in told.numbers.items():
        if originals.get(path) != value:
            values[":".join(path)] = value
    about_layers, sequences = graph.layer_notes
    return Plan(
        graph.fingerprint, cut, {g.name: (counts[g.name], g.size) for g in graph.groups}, {**values, **about_layers}, scales,
        tuple(g.name for g in graph.groups if g.atom in kept and not g.exact), dict(tied.held),
        _without_idle(graph, costs[0], cut, told), costs[1], {n: list(graph.tensor(n).shape) for n in cut},
        {x.name: (x.form, x.container is not None) for x in graph.left_out}, sequences,
    )  # fmt: skip


def _without_idle(graph: Graph, cost: Cost, cut: Mapping[str, Mapping[int, list[int]]], told: Told) -> Cost:
    """The cost less what tensors that nothing comes of lose beside what their groups do."""
    params, size = cost.params, cost.size
    for name in {name for name, _ in told.idle} & graph.states.keys():
        state, shape = graph.states[name], list(graph.tensor(name).shape)
        whole = prod(len(cut[name][d]) if d in cut[name] and (name, d) not in told.idle else n for d, n in enumerate(shape))
        less = whole - prod(len(cut[name].get(d, range(n))) for d, n in enumerate(shape))
        params -= less if state.parameter else 0
        size -= less * state.itemsize if state.saved else 0
    return replace(cost, params=params, size=size)


def _held_values(expression: object) -> list[tuple[Path, int]]:
    from bough.tracing.provenance import attributes_in

    return [(a.path, a.value) for a in attributes_in(expression)]  # type: ignore[arg-type]
