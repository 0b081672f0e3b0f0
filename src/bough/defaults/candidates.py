"""The ways of choosing units that win somewhere: pairs of a criterion and an allocation.

`benchmarks/defaults.py` measures them on all tasks; docs/decisions/0014 says why there is more than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bough.planning import Allocator
from bough.planning.allocation import LeastError, allocator


@dataclass(frozen=True, slots=True)
class Candidate:
    """A criterion, by name or as the user gave it, and an allocation for its scores."""

    importance: Any
    allocation: str | Allocator

    @property
    def names(self) -> tuple[str, str]:
        """Criterion and allocation as text, such as "group" and "uniform"."""
        criterion, allocation = (x if isinstance(x, str) else repr(x) for x in (self.importance, self.allocation))
        return criterion, allocation


ERRORS = Candidate("obs(relative=True, probes=1, sites=64)", "error")
WITH_DATA = (ERRORS, Candidate("group", "global"), Candidate("group", "uniform"))
WITHOUT_DATA = Candidate("group", "global")


def candidates(importance: Any, allocation: str | Allocator | None, gives_errors: bool, has_data: bool) -> list[Candidate]:
    """Return the candidates that agree with what the user gave.

    Args:
        importance: the criterion; None if it is left open.
        allocation: how the budget is met; None if it is left open.
        gives_errors: whether the scores of `importance` are errors, which allocation "error" takes.
        has_data: whether criteria that need data can be used.
    """
    found: list[Candidate] = []
    for candidate in _agreeing(importance, allocation, gives_errors, has_data):
        if candidate not in found:
            found.append(candidate)
    return found


def _agreeing(importance: Any, allocation: Any, gives_errors: bool, has_data: bool) -> Iterator[Candidate]:
    known = WITH_DATA if has_data else (WITHOUT_DATA,)
    if importance is not None and allocation is not None:
        yield Candidate(importance, allocation)
    elif importance is not None:
        yield from (Candidate(importance, c.allocation) for c in known if _takes_errors(c.allocation) == gives_errors)
        if gives_errors:
            yield Candidate(importance, "error")
    elif allocation is not None:
        errors = _takes_errors(allocation)
        yield from (Candidate(c.importance, allocation) for c in known if not errors or c == ERRORS)
    else:
        yield from known


def _takes_errors(allocation: str | Allocator) -> bool:
    return isinstance(allocator(allocation), LeastError)
