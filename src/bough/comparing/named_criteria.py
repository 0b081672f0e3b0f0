"""The criteria of a comparison, checked before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from bough.calibration import Data, Loss
from bough.comparing.naming import Many, by_name
from bough.errors import ComparisonError
from bough.importance import CRITERIA, BlockInfluence, Random, parse_criterion
from bough.importance import criterion as made


@dataclass(frozen=True, slots=True)
class NamedCriterion:
    """A criterion by its name, with one of the seeds where it draws, with None where it does not."""

    name: str
    criterion: Any
    seed: int | None


def named_criteria(criteria: Many[Any], seeds: Sequence[int], loss: Loss | None, data: Data | None) -> list[NamedCriterion]:
    """Names and criteria as named criteria, `Random` always among them; those that have a field `seed` under every seed.

    Raises:
        ComparisonError: a criterion that can not run: it needs data or a loss that is not there, or scores whole layers.
        PlanError: an unknown name.
    """
    seeds = [int(s) for s in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ComparisonError(f"seeds={seeds}: give at least one, and each once")
    given = by_name("criteria", criteria)
    ready = {name: _ready(name, criterion, loss, data) for name, criterion in given.items()}
    if not any(isinstance(c, Random) for c in ready.values()):
        if "random" in ready:
            raise ComparisonError("criteria={'random': ...} takes the name of the control, Random(): choose another name")
        ready["random"] = Random()
    return [c for name, criterion in ready.items() for c in _seeded(name, criterion, seeds)]


def _ready(name: str, criterion: Any, loss: Loss | None, data: Data | None) -> Any:
    if isinstance(criterion, str) and parse_criterion(criterion)[0].needs == "loss" and loss is None:
        raise ComparisonError(f"the criterion {name!r} needs a loss: give loss=fn with fn(model, batch) -> a number (--loss)")
    ready = made(criterion, loss) if isinstance(criterion, str) else criterion
    if not callable(ready):
        raise ComparisonError(f"criteria={criterion!r} is neither a name nor a criterion: use one of {', '.join(CRITERIA)}")
    if isinstance(ready, BlockInfluence):
        raise ComparisonError(f"the criterion {name!r} scores whole layers, not units: plan with drop= by it instead")
    if getattr(ready, "needs_data", False) and data is None:
        raise ComparisonError(f"the criterion {name!r} needs data: give batches, data=loader (--data)")
    return ready


def _seeded(name: str, criterion: Any, seeds: Sequence[int]) -> list[NamedCriterion]:
    draws = is_dataclass(criterion) and not isinstance(criterion, type) and any(f.name == "seed" for f in fields(criterion))
    return (
        [NamedCriterion(name, replace(criterion, seed=s), s) for s in seeds]
        if draws
        else [NamedCriterion(name, criterion, None)]
    )
