"""Check what an allocator returned, one of the user's included, before a plan is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from bough.cost import ClosedForm, shown
from bough.errors import PlanError, instead
from bough.planning.allocation.columns import Column
from bough.planning.allocation.problem import SLACK, Allocation, Allocator


def allocated(decide: Allocator, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> Allocation:
    """Return what the allocator `decide` gives for `columns` and `limits`.

    Raises:
        PlanError: it is no `Allocation`, its counts are not those of a plan (a group is missing or unknown, a count is no whole
            number, no allowed width, or not in proportion to those of tied groups), or its `met` is not true.
    """
    answer = decide(form, columns, limits)
    wrong = _wrong(answer, form, columns, limits)
    if wrong:
        raise PlanError(f"the allocator {getattr(decide, '__name__', type(decide).__name__)} returned {wrong}")
    return Allocation({name: int(n) for name, n in answer.counts.items()}, bool(answer.met), answer.note)


def _wrong(answer: Any, form: ClosedForm, columns: Sequence[Column], limits: Mapping[str, float]) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if not isinstance(answer, Allocation):
        return f"{answer!r:.40}: it must return bough.allocation.Allocation(counts={{group: units kept}}, met=True)"
    if not isinstance(answer.counts, Mapping) or not isinstance(answer.met, (bool, np.bool_)):
        return f"counts of type {type(answer.counts).__name__} and met={answer.met!r}: a dict and True or False are needed"
    return _wrong_counts(answer.counts, form, columns) or _wrong_verdict(answer, form, limits)


def _wrong_counts(counts: Mapping[str, Any], form: ClosedForm, columns: Sequence[Column]) -> str | None:
    sizes = {name: int(size) for name, size in zip(form.names, form.sizes, strict=True)}
    for name in counts:
        if name not in sizes:
            return f"a count for {name!r}, which is no group; {instead(str(name), sizes)}"
    for name, size in sizes.items():
        if name not in counts:
            return f"no count for the group {name!r}: each group needs one, those that stay whole their {size} units"
        n: Any = counts[name]
        if isinstance(n, bool) or not isinstance(n, Integral) or not 1 <= int(n) <= size:
            return f"{n!r} units of {name!r}: a whole number from 1 to {size} is needed"
    free = {g.name for c in columns for g in c.groups}
    for name, size in sizes.items():
        if name not in free and counts[name] != size:
            return f"{counts[name]} units of {name!r}, which has to keep its {size}: it is in none of the columns"
    for column in columns:
        names = [g.name for g in column.groups]
        kept = [counts[n] for n in names]
        if not (column.counts == kept).all(axis=1).any():
            wrong = ", ".join(f"{k} units of {n!r}" for k, n in zip(kept, names, strict=True))
            return f"{wrong}: it must be a row of Column.counts, which holds the widths that are allowed, tied groups together"
    return None


def _wrong_verdict(answer: Allocation, form: ClosedForm, limits: Mapping[str, float]) -> str | None:
    costs = form.evaluate(form.vector(answer.counts), limits)
    missed = [name for name, limit in limits.items() if costs[name][0] > limit * (1 + SLACK)]
    if answer.met and missed:
        cost, limit = float(costs[missed[0]][0]), limits[missed[0]]
        return f"met=True, and {missed[0]} is {shown(missed[0], cost)} where at most {shown(missed[0], limit)} is asked"
    if not answer.met and not missed:
        return "met=False, and its counts meet all limits"
    return None
