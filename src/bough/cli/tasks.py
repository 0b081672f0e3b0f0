"""A task: what the commands that train are given to learn, as `module:callable`.

    def task():
        return train, validation, loss, evaluate

or a dict of these names. `train` is a Dataset or a DataLoader. The others may be None or left out: `validation` is a
DataLoader, `loss(output, batch)` a mean over the batch, and the metric `evaluate(model, validation)`, or `evaluate(model)`
where the validation data is at hand; unless given, it is the share of right answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bough.cli.references import call, positional, user_code
from bough.errors import ModelReferenceError, TrainingError
from bough.recovery.training import logits_of, run_batch

Metric = Callable[[nn.Module], float]

_PARTS = ("train", "validation", "loss", "evaluate")
CONTRACT = (
    "module:callable that returns (train, validation, loss, evaluate), the last three optional: loss(output, batch); "
    "evaluate(model, validation) or evaluate(model)"
)


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be learned, and the metric of it, None where there is nothing to evaluate on."""

    train: Any
    loss: Callable[[Any, Any], Tensor] | None
    metric: Metric | None


def task_of(reference: str) -> Task:
    """Return the task that a reference's callable returns.

    Raises:
        ModelReferenceError: it returns something else.
    """
    train, validation, loss, evaluate = _parts(reference)
    checks: tuple[tuple[str, Any, Callable[[Any], bool], str], ...] = (
        ("train", train, lambda data: hasattr(data, "__iter__") or hasattr(data, "__getitem__"), "a Dataset or a DataLoader"),
        ("validation", validation, lambda data: hasattr(data, "__iter__"), "a DataLoader"),
        ("loss", loss, callable, "a function"),
        ("evaluate", evaluate, callable, "a function"),
    )
    for name, given, fits, wanted in checks:
        if (given is not None or name == "train") and not fits(given):
            raise ModelReferenceError(
                f"{reference} returned {type(given).__name__} as {name}: {wanted} is wanted; a task is ({', '.join(_PARTS)})"
            )
    return Task(train, loss, _metric(reference, evaluate, validation))


def _parts(reference: str) -> tuple[Any, Any, Any, Any]:
    """Return the four parts of the task that a reference's callable returns, None for those that it leaves out."""
    made = call(reference)
    if isinstance(made, dict):
        unknown = [str(name) for name in made if name not in _PARTS]
        if unknown or "train" not in made:
            wrong = f"names {', '.join(unknown)}" if unknown else "has no train"
            raise ModelReferenceError(f"{reference} returned a dict that {wrong}: a task has {', '.join(_PARTS)}")
        made = tuple(made.get(name) for name in _PARTS)
    parts = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(parts) <= len(_PARTS):
        raise ModelReferenceError(f"{reference} returned {len(parts)} things: ({', '.join(_PARTS)}) are wanted")
    train, validation, loss, evaluate = (*parts, None, None, None)[:4]
    return train, validation, loss, evaluate


def _metric(reference: str, evaluate: Callable[..., Any] | None, validation: Any) -> Metric | None:
    """Return the metric of a model alone, whichever of the two forms `evaluate` has."""
    if evaluate is None:
        return None if validation is None else lambda model: accuracy(model, validation)
    takes = positional(evaluate) or (2, 2)
    if takes[0] <= 2 <= takes[1] and validation is not None:
        given = [validation]
    elif takes[0] <= 1 <= takes[1]:
        given = []
    elif takes[0] == 2:
        raise ModelReferenceError(
            f"{reference} gives evaluate(model, validation) and no validation: return it, or write evaluate(model)"
        )
    else:
        raise ModelReferenceError(f"{reference}: evaluate is called as evaluate(model, validation) or evaluate(model)")

    def metric(model: nn.Module) -> float:
        with user_code(f"evaluate of {reference}"):
            value = evaluate(model, *given)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise TrainingError(f"evaluate of {reference} returned {type(value).__name__}: a number is wanted") from None

    return metric


def accuracy(model: nn.Module, validation: Any) -> float:
    """The share of right answers; batches are pairs (inputs, labels)."""
    right = total = 0
    device = next(model.parameters()).device
    for batch in validation:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TrainingError(
                f"validation gives batches ({type(batch).__name__}) that are no pairs (inputs, labels): return an evaluate "
                "of your own with the task"
            )
        x, y = batch
        answers = logits_of(run_batch(model, (x.to(device), y))).argmax(1).cpu()
        right, total = right + int((answers == y).sum()), total + y.numel()
    if total == 0:
        raise TrainingError("validation is empty: it gives no labels to count")
    return right / total
