"""Names that users give: which groups they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil
from numbers import Integral, Real
from typing import Any

from bough.errors import PlanError, instead
from bough.graph import Graph, Group
from bough.planning.budget import Keep
from bough.tracing.selection import groups_computed, groups_named, label_of, selectors


def by_group(graph: Graph, given: Mapping[Any, float], option: str) -> dict[str, float]:
    """Return what is asked of groups and of modules as what is asked of groups and of lists of layers; the last one counts.

    A module stands for the groups whose units nothing else computes, or only modules of which the same is asked. The name of
    a list of layers with a whole number stays: it asks for a number of layers.

    Args:
        graph: of the model.
        given: {group, module, type of modules, or a name or pattern of them: what is asked}.
        option: the argument that was given it, for messages.

    Raises:
        PlanError: an entry names nothing, or a module computes no group by itself.
    """
    lists = {x.container for x in graph.layers}
    found: dict[str, float] = {}
    for entry, n in given.items():
        layers = option == "keep" and entry in lists and isinstance(n, Integral)
        if isinstance(entry, str) and (layers or groups_named(graph.groups, entry) or not _is_module(graph, entry)):
            names: Iterable[str] = (entry,)
        else:
            shown = f"{option}={{{label_of(graph.model, entry)!r}: {n!r}}}"
            alike = [e for e, m in given.items() if type(m) is type(n) and m == n and e not in lists]
            names = sorted(groups_computed(graph, selectors(entry, option), option, shown, alike))
        for name in names:
            found.pop(name, None)
            found[name] = n
    return found


def _is_module(graph: Graph, name: str) -> bool:
    """Return whether a name or pattern is of modules or parameters of the model."""
    model = graph.model
    paths = [*(n for n, _ in model.named_modules(remove_duplicate=False)), *(n for n, _ in model.named_parameters())]
    return name in paths or any(fnmatchcase(path, name) for path in paths)


def groups_left_whole(graph: Graph, left: Mapping[str, str], exact_only: bool) -> dict[str, str]:
    """Return {group that is to stay: reason}; `left` are those that `ignore` and `only` leave alone.

    Raises:
        PlanError: no group can be cut.
    """
    if not graph.groups and not graph.left_out:
        reasons = "; ".join(dict.fromkeys(f"{f.name}: {f.reason}" for f in graph.frozen[:5]))
        raise PlanError(f"no group of {type(graph.model).__name__} can be cut. {reasons or 'It has no parameters.'}")
    found = {g.name: left[g.name] for g in graph.groups if g.name in left}
    if exact_only:
        found.update({g.name: "a statistic runs over it, and exact_only is set" for g in graph.groups if not g.exact})
        if len(found) == len(graph.groups):
            raise PlanError("no exact group can be cut; without exact_only there are renormalizing ones")
    return found


def least(groups: Sequence[Group], minimum: float | Mapping[str, float]) -> dict[str, int]:
    """Least units kept per group name, of all groups or of those that names and patterns (`layer1.*`) fit: the last counts.

    Raises:
        PlanError: a minimum that is not positive, or a name that fits no group.
    """
    given = minimum if isinstance(minimum, Mapping) else {"*": minimum}
    kept: dict[str, int] = {}
    for name, n in given.items():
        if not (isinstance(n, Real) and n > 0):
            raise PlanError(f"minimum={minimum!r}: {n!r} must be positive: a number of units, or a share below 1")
        fit = groups_named(groups, name)
        if not fit and isinstance(minimum, Mapping):
            raise PlanError(f"minimum names {name!r}, which is no group; {instead(name, (g.name for g in groups))}")
        kept.update({g.name: ceil(n if n >= 1 else n * g.size) for g in fit})
    return kept


def shares_kept(groups: Sequence[Group], keep: Keep) -> dict[str, float]:
    """Return the share of its units that each group is to keep at least, for those that `keep` names; the last name counts.

    Raises:
        PlanError: a share that is not above 0 and at most 1, a number of units that a group does not have, or a name that fits
            no group.
    """
    if not isinstance(keep, Mapping):
        if not 0 < keep <= 1:
            raise PlanError(f"keep={keep!r}: a share of the units must be above 0 and at most 1")
        return {g.name: float(keep) for g in groups}
    shares: dict[str, float] = {}
    for name, n in keep.items():
        fit = groups_named(groups, name)
        if not fit:
            raise PlanError(f"keep names {name!r}, which is no group; {instead(name, (g.name for g in groups))}")
        for g in fit:
            whole = isinstance(n, Integral) and not isinstance(n, bool)
            if not (1 <= n <= g.size if whole else isinstance(n, Real) and not isinstance(n, bool) and 0 < n <= 1):
                raise PlanError(
                    f"keep[{name!r}]={n}: must be a whole number from 1 to {g.size}, or a share above 0 and at most 1"
                )
            shares[g.name] = n / g.size if whole else float(n)
    return shares
