"""Which groups `ignore` and `only` leave alone: names, glob patterns, modules and module types, resolved for every stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from bough.errors import PlanError, instead
from bough.graph import Graph, Group
from bough.tracing.contractions import consumed, elementwise_parameters

Selector = str | nn.Module | type[nn.Module]
Selection = Selector | Iterable[Selector]
"""One entry or several: names and patterns of modules, parameters and groups, modules of the model, and types of modules."""


def selectors(given: Selection | None, option: str) -> tuple[Selector, ...]:
    """Return the entries that the argument `option` was given, as a tuple.

    Raises:
        PlanError: an entry is no name, no module and no type of modules.
    """
    if given is None:
        return ()
    several = isinstance(given, Iterable) and not isinstance(given, (str, nn.Module, type))  # nn.Sequential is iterable
    entries: tuple[Any, ...] = tuple(given) if several else (given,)  # type: ignore[arg-type]
    for entry in entries:
        if not isinstance(entry, (str, nn.Module)) and not (isinstance(entry, type) and issubclass(entry, nn.Module)):
            raise PlanError(
                f"{option}={given!r}: {entry!r} is no name, pattern, module or module type; give a list such as "
                f"{option}=['head', 'layer1.*', nn.Embedding, model.stem]"
            )
    return entries


def as_names(model: nn.Module, given: Selection | None, option: str) -> tuple[str, ...]:
    """Return the entries with modules and types replaced by names, which a copy of `model` understands as well.

    Raises:
        PlanError: a module that is no part of `model`, or a type of which it has no module with parameters.
    """
    names = ((e,) if isinstance(e, str) else _module_names(model, e, option) for e in selectors(given, option))
    return tuple(dict.fromkeys(n for found in names for n in found))


def left_alone(graph: Graph, ignore: Selection = (), only: Selection | None = None) -> dict[str, str]:
    """Return {name of a group that stays: reason} for what `ignore` names and for what lies outside of `only`.

    `ignore` keeps every group that has a dim of a tensor named, so all dims of that tensor stay. `only` keeps every group
    whose units another layer than those named computes too. Layers that only read the units, or scale, shift or normalize
    them, follow a cut and need not be named.

    Raises:
        PlanError: an entry names nothing, or `only` leaves no group that could be cut.
    """
    stay: dict[str, str] = {}
    if only is not None:
        entries = selectors(only, "only")
        selected = groups_computed(graph, entries, "only", _shown(graph.model, entries))
        stay = {g.name: f"outside of {_shown(graph.model, entries)}" for g in graph.groups if g.name not in selected}
    for entry in selectors(ignore, "ignore"):
        named = _resolved(graph, entry, "ignore")
        for g in graph.groups:
            if g.name in named.groups or any(m.name in named.tensors for m in g.members):
                stay[g.name] = f"ignored: {named.label}"
    return stay


def tensors_named(graph: Graph, given: Selection | None, option: str) -> frozenset[str]:
    """Return the parameters and buffers that `given` names: those of modules and parameters, and the members of groups.

    Raises:
        PlanError: an entry names nothing.
    """
    named = [_resolved(graph, entry, option) for entry in selectors(given, option)]
    groups = {name for n in named for name in n.groups}
    members = {m.name for g in graph.groups if g.name in groups for m in g.members}
    return frozenset(members.union(*(n.tensors for n in named)))


def groups_named(groups: Sequence[Group], name: str) -> list[Group]:
    """Return the group called `name`, or the groups whose names the pattern `name` matches."""
    return [g for g in groups if g.name == name] or [g for g in groups if fnmatchcase(g.name, name)]


@dataclass(frozen=True, slots=True)
class _Named:
    """What one entry names: tensors of the model, or else groups."""

    label: str
    tensors: frozenset[str]
    groups: frozenset[str] = frozenset()


def _resolved(graph: Graph, entry: Selector, option: str) -> _Named:
    """Return what an entry names: the tensors of the modules and parameters that fit it, or groups where none do."""
    if not isinstance(entry, str):
        names = _module_names(graph.model, entry, option)
        return _Named(label_of(graph.model, entry), _tensors_within(graph, names))
    modules = [n for n, _ in graph.model.named_modules(remove_duplicate=False) if n]
    paths = [*modules, *(alias for _, aliases in _aliases(graph) for alias in aliases)]
    tensors = _tensors_within(graph, _fitting(paths, entry))
    every = [*(g.name for g in graph.groups), *(f.name for f in graph.frozen)]
    groups = frozenset() if tensors else frozenset(_fitting(every, entry))
    if tensors or groups:
        return _Named(entry, tensors, groups)
    kind = type(graph.model).__name__
    if entry in modules:
        raise PlanError(f"{option}={entry!r}: this module of {kind} has no parameters, so it has no dims to cut: leave it out")
    near = instead(entry, dict.fromkeys((*paths, *every)))
    raise PlanError(f"{option}={entry!r} names no module, parameter or group of {kind}; {near}")


def _fitting(names: Sequence[str], pattern: str) -> list[str]:
    """Return `pattern` if it is one of the names, or else the names that it matches."""
    return [pattern] if pattern in names else [n for n in names if fnmatchcase(n, pattern)]


def _module_names(model: nn.Module, entry: nn.Module | type[nn.Module], option: str) -> tuple[str, ...]:
    """Return the names of a module of the model, or of all its modules of a type; those without parameters are left out."""
    kind, modules = type(model).__name__, list(model.named_modules(remove_duplicate=False))
    fit = {n: m for n, m in modules if (isinstance(m, entry) if isinstance(entry, type) else m is entry)}
    names = tuple(n for n, m in fit.items() if any(True for _ in (*m.parameters(), *m.buffers())))
    if names:
        return names
    if fit:
        name = label_of(model, entry)
        raise PlanError(f"{option}={name}: this module of {kind} has no parameters, so it has no dims to cut: leave it out")
    if isinstance(entry, type):
        near = instead(entry.__name__, dict.fromkeys(type(m).__name__ for _, m in modules))
        raise PlanError(f"{option}={entry.__name__}: {kind} has no module of this type; {near}")
    name = type(entry).__name__
    raise PlanError(f"{option}=<{name}>: this module is no part of {kind}: take it from the model given, or write its name")


def label_of(model: nn.Module, entry: Selector) -> str:
    """Return an entry as messages show it: a name or pattern as it is, a module by its name, a type by its own."""
    if isinstance(entry, str):
        return entry
    if isinstance(entry, type):
        return entry.__name__
    return next((n for n, m in model.named_modules() if m is entry), "") or type(entry).__name__


def _aliases(graph: Graph) -> Iterator[tuple[str, list[str]]]:
    """Yield each tensor of the graph by its name, with all names that the model has for it: tied weights have several."""
    found: dict[int, list[str]] = {}
    for tensors in (graph.model.named_parameters(remove_duplicate=False), graph.model.named_buffers(remove_duplicate=False)):
        for name, tensor in tensors:
            found.setdefault(id(tensor), []).append(name)
    for name in graph.states:
        yield name, found.get(id(graph.tensor(name)), [name])


def _tensors_within(graph: Graph, names: Iterable[str]) -> frozenset[str]:
    """Return the tensors with a name among `names`, or below one of them; the name of the model itself is empty."""
    whole = frozenset(names)

    def covered(name: str) -> bool:
        parts = name.split(".")
        return "" in whole or any(".".join(parts[:i]) in whole for i in range(1, len(parts) + 1))

    return frozenset(name for name, aliases in _aliases(graph) if any(map(covered, aliases)))


def groups_computed(
    graph: Graph, entries: Sequence[Selector], option: str, shown: str, beside: Sequence[Selector] = ()
) -> frozenset[str]:
    """Return the groups that the entries name, or whose units are computed by nothing but the modules that they name.

    Args:
        graph: of the model.
        entries: names, patterns, modules or types of modules.
        option: the argument that was given the entries, for messages about one of them.
        shown: all that was given, for messages.
        beside: further entries, whose modules may compute the units together with those of `entries`.

    Raises:
        PlanError: an entry names nothing, or there is no such group.
    """
    named = [_resolved(graph, entry, option) for entry in entries]
    tensors = frozenset(t for n in named for t in n.tensors)
    asked = frozenset(name for n in named for name in n.groups)
    makers = _makers(graph)
    covered = tensors.union(*(_resolved(graph, entry, option).tensors for entry in beside))
    selected = frozenset(g for g, made in makers.items() if g in asked or (made & tensors and made <= covered))
    if selected or not graph.groups:
        return selected
    others = {name: min(made - covered) for name, made in makers.items() if made & tensors}
    why, alike = "they compute no units that can be cut", "" if option == "only" else ", and ask the same of each"
    for name, parameter in list(others.items())[:1]:
        module = parameter.rpartition(".")[0] or parameter
        why = f"{module} also computes the units of group {name!r}: name all that computes it{alike}"
    raise PlanError(f"{shown} leaves nothing to cut: {why}")


def _shown(model: nn.Module, entries: Sequence[Selector]) -> str:
    """Return `only` as it was given, for messages."""
    return f"only=[{', '.join(label_of(model, e) if isinstance(e, type) else repr(label_of(model, e)) for e in entries)}]"


def _makers(graph: Graph) -> dict[str, frozenset[str]]:
    """Return for each group the parameters that compute its units: not those that read, scale, shift or normalize them."""
    reading, following = consumed(graph), elementwise_parameters(graph)

    def makers(group: Group) -> frozenset[str]:
        members = [m for m in group.members if graph.states[m.name].parameter]
        written = [m for m in members if (m.name, m.dim) not in reading]
        computing = [m for m in written if (m.name, group.atom) not in following]
        return frozenset(m.name for m in computing or written or members)

    return {g.name: makers(g) for g in graph.groups}
