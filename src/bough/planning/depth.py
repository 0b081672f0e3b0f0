"""Plans that leave layers out: which, what the rest of the graph looks like, and what the model notes about its layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bough.errors import ConflictError, PlanError, instead
from bough.graph import Frozen, Graph, Group, Layer, Member, OpRecord, RecordedRun, Storage
from bough.planning.budget import Goal, LeastOfTied
from bough.tracing.capture.attribute_numbers import attribute_numbers
from bough.tracing.capture.provenance import attributes_in, key_of
from bough.tracing.contractions import read_by
from bough.tracing.replay import replay

Scores = Mapping[str, NDArray[np.float64]]


def chosen(graph: Graph, drop: Iterable[str], goal: Goal, scores: Scores) -> tuple[Layer, ...]:
    """The layers to leave out: those named in `drop`, and of each list that `goal` keeps in part those of the lowest scores.

    Raises:
        PlanError: a name that is no layer that can be left out, or a count that the list does not allow.
    """
    by_name = {x.name: x for x in graph.layers}
    names = list(drop)
    lists = containers(graph)
    for container, n in goal.items() if isinstance(goal, Mapping) else ():
        if container in lists and not any(g.name == container for g in graph.groups):
            entries = lists[container]
            if not (isinstance(n, Integral) and 0 <= n <= len(entries)):
                raise PlanError(
                    f"keep[{container!r}]={n}: must be a whole number from 0 to {len(entries)}, the layers that can be left out"
                )
            given = np.asarray(scores.get(container, ()), dtype=np.float64)
            if given.shape != (len(entries),) and n < len(entries):
                raise PlanError(f"scores[{container!r}] must give one number for each of its {len(entries)} layers")
            names += [entries[i].name for i in np.argsort(given, kind="stable")[: len(entries) - n]]
    for name in names:
        if name not in by_name:
            raise PlanError(f"drop: {name!r} is no layer that can be left out; {instead(name, by_name)}")
    inner = {n for n in names if any(n.startswith(f"{other}.") for other in names)}
    return tuple(by_name[n] for n in dict.fromkeys(names) if n not in inner)


def widths(graph: Graph, goal: Goal) -> Goal:
    """`goal` without what it says of lists of layers."""
    if not isinstance(goal, Mapping):
        return goal
    lists = containers(graph).keys() - {g.name for g in graph.groups}
    kept = {n: k for n, k in goal.items() if n not in lists}
    return LeastOfTied({n: int(k) for n, k in kept.items()}) if isinstance(goal, LeastOfTied) else kept


def containers(graph: Graph) -> dict[str, list[Layer]]:
    """The lists of modules with entries that can be left out, and these entries in order."""
    lists: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        if layer.container is not None:
            lists.setdefault(layer.container, []).append(layer)
    return lists


def entry(container: str, key: str) -> str:
    """The name of a list's entry; the model itself may be the list."""
    return f"{container}.{key}" if container else key


def without(graph: Graph, layers: Sequence[Layer]) -> Graph:
    """The graph of the model with `layers` left out: what enters each is what leaves it."""
    if not layers:
        return graph
    module_calls = [p for x in layers for p in x.module_calls]
    gone = {i for p in module_calls for i in range(p.start, p.end)}
    names = tuple(f"{x.name}." for x in layers)
    every = graph.all_ops
    used = {s for op in every if op.index not in gone for s in op.states}
    states = {n: s for n, s in graph.states.items() if not n.startswith(names) or n in used}
    place: dict[int, int] = {}
    for op in every:
        if op.index not in gone:
            place[op.index] = len(place)
    same = {p.leaves: p.enters for p in module_calls}

    def number(n: int) -> int:
        while n in same:
            n = same[n]
        return n

    def renumbered(ops: Iterable[OpRecord]) -> tuple[OpRecord, ...]:
        return tuple(
            replace(op, index=place[op.index], inputs=tuple(map(number, op.inputs))) for op in ops if op.index in place
        )

    ops = renumbered(graph.ops)
    readers = read_by(ops)
    groups = (replace(g, readers=max(readers[g.atom], 1)) for g in graph.groups)
    return replace(
        graph, ops=ops, further_ops=renumbered(graph.further_ops), runs=_runs(graph, place), states=states,
        storages=_storages(graph, layers, gone, place),
        groups=tuple(g for g in (_group(g, states) for g in groups) if g.members),
        frozen=tuple(f for f in (_group(f, states) for f in graph.frozen) if f.members),
        equations=tuple(e for e in graph.equations if not _within(e.expression, names)), layers=(),
        left_out=tuple(layers), layer_notes=bookkeeping(graph, layers),
    )  # fmt: skip


def _runs(graph: Graph, place: Mapping[int, int]) -> tuple[RecordedRun, ...]:
    """Return the runs with the numbers of the ops that stay."""
    before = np.cumsum([0, *(op.index in place for op in graph.all_ops)])
    return tuple(replace(r, start=int(before[r.start]), end=int(before[r.end])) for r in graph.runs)


def left_out(graph: Graph, layers: Sequence[Layer]) -> Graph:
    """`without`, such that the model's Python runs: where it counts on a list's length, a layer that passes through stays.

    Raises:
        ConflictError: the model does not run without a layer, either way.
    """
    if not layers:
        return graph
    closed = without(graph, layers)
    if not replay(closed, {}, {}).conflicts:
        return closed
    standing = without(graph, [replace(x, container=None) for x in layers])
    conflicts = replay(standing, {}, {}).conflicts
    if conflicts:
        raise ConflictError(f"the model does not run without {', '.join(x.name for x in layers)}: {conflicts[0]}")
    return standing


def _group(group: Any, states: Mapping[str, Any]) -> Any:
    members: tuple[Member, ...] = tuple(m for m in group.members if m.name in states)
    assert isinstance(group, (Group, Frozen))
    return replace(group, members=members)


def _within(expression: Any, names: tuple[str, ...]) -> bool:
    return any(f"{a.path[0]}.".startswith(names) for a in attributes_in(expression))


def _storages(
    graph: Graph, layers: Sequence[Layer], gone: set[int], place: Mapping[int, int]
) -> tuple[Storage, ...]:  # fmt: skip
    """Memory of the ops that stay; what enters a layer lives as long as what left it."""
    last = sum(op.index in place for op in graph.ops)
    before = np.cumsum([0, *(i not in gone for i in range(len(graph.ops)))])  # ops that stay, before each index

    def moved(step: int) -> int:
        return min(int(before[min(step, len(graph.ops))]), last)

    kept = []
    for s in graph.storages:
        if s.born in gone:
            continue
        dies = s.dies
        for x in (layer.module_calls[0] for layer in layers):
            if s.born < x.start <= s.dies < x.end:  # read by the layer last: goes on as what left it
                dies = max((r.dies for r in graph.storages if x.start <= r.born < x.end), default=dies)
        kept.append(replace(s, born=place.get(s.born, s.born), dies=moved(dies)))
    return tuple(kept)


_COUNT = re.compile(r"layer|block|depth")
_SIDES = ("encoder", "decoder", "vision", "text")


def bookkeeping(graph: Graph, layers: Sequence[Layer]) -> tuple[dict[str, int], dict[str, list[int]]]:
    """What the model notes about its layers: (integers that become others, lists of which items stay), by path.

    An integer that in every entry of a list equals its place (plus a constant) is its index. An integer of a module
    around the list, or of its configuration, that equals the list's length and is named for layers, blocks or depth is
    its length; a list of that length, named so, has an item for each.
    """
    attributes: dict[str, int] = {}
    sequences: dict[str, list[int]] = {}
    modules = dict(graph.model.named_modules())
    for container in dict.fromkeys(x.container for x in layers if x.container is not None):
        keys = list(modules[container]._modules)
        gone = {x.name.rpartition(".")[2] for x in layers if x.container == container}
        stay = [i for i, k in enumerate(keys) if k not in gone]
        attributes.update(_indices(graph, container, keys, stay))
        counts, lists = _lengths(graph, container, len(keys))
        attributes.update(dict.fromkeys(counts, len(stay)))
        sequences.update(dict.fromkeys(lists, stay))
    return attributes, sequences


def _indices(graph: Graph, container: str, keys: list[str], stay: list[int]) -> dict[str, int]:
    found: dict[tuple[str, ...], dict[int, int]] = {}
    for i, key in enumerate(keys):
        for path, value in attribute_numbers(graph.model.get_submodule(entry(container, key))):
            if type(value) is int:
                found.setdefault(path, {})[i] = value
    result: dict[str, int] = {}
    for path, values in found.items():
        shifts = {v - i for i, v in values.items()}
        if len(values) > 1 and len(shifts) == 1:
            for new, i in enumerate(stay):
                if i in values and values[i] != new + min(shifts):
                    inner = f".{path[0]}" if path[0] else ""
                    result[key_of((f"{entry(container, keys[i])}{inner}", *path[1:]))] = new + min(shifts)
    return result


def _lengths(graph: Graph, container: str, n: int) -> tuple[list[str], list[str]]:
    """Paths of the integers, and of the lists, that tell how many entries `container` has."""
    parts = container.split(".")
    counts: list[tuple[str, ...]] = []
    lists: list[tuple[str, ...]] = []
    seen: set[int] = set()
    for depth in range(len(parts)):
        holder = ".".join(parts[:depth])
        for path, value in attribute_numbers(graph.model.get_submodule(holder), inner=False):
            named = [k for k in path[1:] if not k.isdigit()]
            if not named or not _COUNT.search(named[-1]):
                continue
            full = (holder, *path[1:])
            if isinstance(value, (list, tuple)):
                plain = all(isinstance(v, (int, float, str)) for v in value) and not any(k.isdigit() for k in path[1:])
                if len(value) == n and plain and id(value) not in seen:
                    seen.add(id(value))
                    lists.append(full)
            elif value == n and all(k in parts for k in path[1:] if k.isdigit()):
                counts.append(full)
    return [key_of(p) for p in _own(counts, container)], [key_of(p) for p in _own(lists, container)]


def _own(paths: list[tuple[str, ...]], container: str) -> list[tuple[str, ...]]:
    """Of paths such as encoder_layers and decoder_layers, those of the container's own side."""
    sides = [s for s in _SIDES if s in container]

    def side(path: tuple[str, ...]) -> list[str]:
        return [s for s in _SIDES if any(s in k for k in path[1:])]

    named = [p for p in paths if set(side(p)) & set(sides)]
    return named or [p for p in paths if not side(p)]
