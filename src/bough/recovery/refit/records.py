"""What refit is asked for, and what it records of each weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RefitOptions:
    """Options of `refit_` that decide what is solved."""

    ridge: float | None = None
    sites: int = 128
    everything: bool = True
    skips: bool = True
    biases_only: bool = False


@dataclass(frozen=True, slots=True)
class RefittedLayer:
    """Record of a refitted weight.

    Attributes:
        name: of the parameter.
        before, after: E|Y - X W - b|^2 as a share of the variance of Y (of E|Y|^2 if no constant can be added).
        ridge: the strength that was used; None if only the bias was solved for.
        note: a caveat; "" if there is none.
    """

    name: str
    before: float
    after: float
    ridge: float | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, for JSON."""
        return asdict(self)


def table_of(layers: Sequence[RefittedLayer], skipped: Mapping[str, str]) -> str:
    """Return the errors of refitted weights as a table, followed by the weights that were not refitted."""
    lines = [f"{'refitted':56} {'error':>9} {'after':>9} {'ridge':>7}"]
    for x in layers:
        ridge = "-" if x.ridge is None else f"{x.ridge:.0e}"
        lines.append(f"{x.name:56} {x.before:9.2%} {x.after:9.2%} {ridge:>7}{f'  ({x.note})' if x.note else ''}")
    lines += [f"not refitted: {name}: {why}" for name, why in skipped.items()]
    return "\n".join(lines)
