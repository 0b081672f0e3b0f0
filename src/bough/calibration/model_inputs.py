"""Inputs for a model from a batch of data, before the model has been traced."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from torch import nn

from bough.calibration.batches import copy_to_device, parameter_device, select_inputs
from bough.calibration.data import Data
from bough.calibration.processes import gather_objects, process_count
from bough.calibration.staged_run import MAX_PAUSED
from bough.errors import PlanError


def forward_inputs(model: nn.Module, batch: Any) -> Any:
    """Return the parts of a batch that a model's forward takes.

    A tensor is returned as it is; of a tuple or list, as many parts as forward has required arguments; of a mapping, the
    entries that forward has parameters for, without "labels".
    """
    parameters = inspect.signature(model.forward).parameters
    if isinstance(batch, Mapping):
        accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return {k: v for k, v in batch.items() if (k in parameters or accepts_any) and k != "labels"}
    if not isinstance(batch, (tuple, list)):
        return batch
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters.values() if p.default is p.empty and p.kind in positional]
    return tuple(batch[: max(len(required), 1)])


def require_reiterable(data: Data) -> None:
    """Raise PlanError if the data is a one-shot iterator."""
    if data.once:
        raise PlanError("the data can be gone through once only: give a list or a DataLoader, which can be gone through again")


def require_few_batches(data: Data) -> None:
    """Raise PlanError if the data is a one-shot iterator, or has more batches than can be paused at a time."""
    require_reiterable(data)
    if sum(1 for _ in islice(iter(data.batches), MAX_PAUSED + 1)) > MAX_PAUSED:
        raise PlanError(
            f"the data has more than {MAX_PAUSED} batches, all of which wait between two blocks: give larger batches, or fewer"
        )


def first_batches(data: Data, n: int) -> list[Any]:
    """Return the first `n` batches of the data, fewer if the data has fewer.

    Raises:
        PlanError: there are no batches, or the data is a one-shot iterator.
    """
    require_reiterable(data)
    batches = list(islice(iter(data.batches), n))
    if not batches:
        raise PlanError("the data gives no batches")
    return batches


def require_batch_in_each_process(data: Data) -> None:
    """Raise PlanError, in every process, if the data is shared among processes and one of them has no batch."""
    if not data.distributed:
        return
    empty = [i for i, given in enumerate(gather_objects(next(iter(data.batches), None) is not None)) if not given]
    if empty:
        raise PlanError(
            f"process {empty[0]} of {process_count()} has no batch of the data: give each at least one, or use fewer"
        )


def example_inputs_from(model: nn.Module, data: Data, traced_with: int | Sequence[str] | None) -> Any:
    """Return example inputs for `trace`, taken from the first batch of the data.

    Args:
        model: decides which parts of a batch are inputs, and on which device they have to be.
        data: calibration data that can be iterated over several times.
        traced_with: `Plan.inputs`: the number of positional inputs, or the names of keyword inputs, of an earlier trace; None
            if it is not known.

    Raises:
        PlanError: there are no batches, the data is a one-shot iterator, or `data.forward` is set, so that the inputs of the
            model cannot be known.
    """
    batch = first_batches(data, 1)[0]
    if data.forward is not None:
        raise PlanError("Data(forward=...) gives batches in a way of its own: give example_inputs, as for trace")
    n, names = (traced_with, ()) if isinstance(traced_with, int) else (0, traced_with or ())
    if isinstance(batch, (tuple, list)) and 0 < n + len(names) <= len(batch):
        args, kwargs = select_inputs(model, batch, n, names)
        return kwargs or args
    return copy_to_device(forward_inputs(model, batch), parameter_device(model))
