"""How a batch is given to a model of which no run is recorded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import islice
from typing import Any

from torch import nn

from bough.errors import PlanError
from bough.importance.data import Data, home_of, moved, parts_of
from bough.planning.plan import Plan


def given(model: nn.Module, batch: Any) -> Any:
    """The parts of a batch that a model takes, as example inputs: a tensor as it is, of a tuple or list as many as forward
    needs, of a mapping those that forward has names for, labels excepted."""
    parameters = inspect.signature(model.forward).parameters
    if isinstance(batch, Mapping):
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return {k: v for k, v in batch.items() if (k in parameters or anything) and k != "labels"}
    if not isinstance(batch, (tuple, list)):
        return batch
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind in by_place]
    return tuple(batch[: max(len(needed), 1)])


def refuse_once(data: Data) -> None:
    """PlanError for data that can be gone through once only."""
    if data.once:
        raise PlanError("the data can be gone through once only: give a list or a DataLoader, which can be gone through again")


def first_batches(data: Data, n: int) -> list[Any]:
    """The first batches, `n` at most, of data that is gone through again and again.

    Raises:
        PlanError: there are no batches, or they can be gone through once only.
    """
    refuse_once(data)
    found = list(islice(iter(data.batches), n))
    if not found:
        raise PlanError("the data gives no batches")
    return found


def example_of(model: nn.Module, data: Data, plan: Plan) -> Any:
    """Example inputs from the first batch: of a tuple or list, the parts that the plan's model was traced with.

    Raises:
        PlanError: there are no batches or they can not be gone through again, or are given in a way of the data's own.
    """
    batch = first_batches(data, 1)[0]
    if data.forward is not None:
        raise PlanError("Data(forward=...) gives batches in a way of its own: give example_inputs, as for trace")
    n, names = (plan.inputs, ()) if isinstance(plan.inputs, int) else (0, plan.inputs or ())
    if isinstance(batch, (tuple, list)) and 0 < n + len(names) <= len(batch):
        args, kwargs = parts_of(model, batch, n, names)
        return kwargs or args
    return moved(given(model, batch), home_of(model))
