"""Start points of a search: the plans that bough's allocators find, so that a search is never worse than one shot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bough.errors import PlanError
from bough.planning.allocation import Allocator, allocated, allocator
from bough.searching.space import Choice, SearchSpace

START = ("uniform", "global", "greedy", "knapsack")
_SHARES = (1.0, 0.75, 0.5, 0.25)  # of a cost that is minimized


def start_points(
    space: SearchSpace, allocations: Iterable[str | Allocator], minimized: Sequence[str]
) -> tuple[list[tuple[str, Choice]], list[str]]:
    """Return ((name, choice) of each start point, a note on each allocator that can not take the limits).

    The start points are the dense model, where it meets the limits, and each distinct plan that the allocators find.

    Args:
        space: the search space.
        allocations: names of allocators, or allocators.
        minimized: costs that are objectives: plans are also made for shares of each, for the front's whole length.
    """
    form, found, seen = space.pricing.form(space.always_out), list[tuple[str, Choice]](), set[str]()
    ways, notes = list(allocations), dict[str, None]()
    if ways and space.feasible(space.whole)[0]:
        found.append(("start: dense", space.whole))
        seen.add(space.candidate(space.whole).key)
    for name, limits in _limits(space, minimized):
        for way in ways:
            decide = allocator(way)
            label = way if isinstance(way, str) else type(way).__name__
            try:
                got = allocated(decide, form, space.columns, limits)
            except PlanError as error:
                notes[f"no start point by {label!r}: {error}"] = None
                continue
            if not got.met:
                continue
            choice = space.choice_of(got.counts)
            key = space.candidate(choice).key
            if key not in seen:
                seen.add(key)
                found.append((f"start: {label}{name}", choice))
    return found, list(notes)


def _limits(space: SearchSpace, minimized: Sequence[str]) -> list[tuple[str, Mapping[str, float]]]:
    """Return the limits that start points are made for, each with what distinguishes it from the limits of the space."""
    if not minimized:
        return [("", space.limits)] if space.limits else []
    found: list[tuple[str, Mapping[str, float]]] = []
    whole = space.pricing.original.to_dict()
    for name in minimized:
        most = min(space.limits.get(name, whole[name]), whole[name])
        found += [(f", {share:.0%} of {name}", {**space.limits, name: share * most}) for share in _SHARES]
    return found
