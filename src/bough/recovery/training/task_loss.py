"""Default forward pass and loss of a training batch, which is (inputs, labels) or a dict of keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bough.calibration import Data
from bough.errors import TrainingError


def forward_of(train: Any) -> Callable[[nn.Module, Any], Any]:
    """Return the function (model, batch) -> output of training data: that of its `Data`, if it has one, else `run_batch`."""
    return train.forward if isinstance(train, Data) and train.forward is not None else run_batch


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Return the model's output for a batch of keyword arguments, or for the first item of a tuple or list."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def batch_loss(output: Any, batch: Any) -> Tensor:
    """Return the `loss` of an output, or the cross-entropy of its logits with `batch[1]` (see `classes_dim`).

    Raises:
        TrainingError: the output has no loss, and the batch no labels that fit the logits.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        logits, labels = logits_of(output), batch[1]
        try:
            return F.cross_entropy(logits.movedim(classes_dim(logits, labels), 1) if logits.dim() > 2 else logits, labels)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(
                f"no cross-entropy of logits {list(logits.shape)} and the batch's second part: {error}. Give labels that "
                "number the classes, or loss=(output, batch) -> Tensor"
            ) from None
    raise TrainingError("the output has no loss and the batch is no pair (inputs, labels): give loss=(output, batch) -> Tensor")


def classes_dim(logits: Tensor, labels: Tensor) -> int:
    """Return the dim of the classes in logits with three dims or more: 1 or -1, whichever dim the labels lack.

    Args:
        logits: [N, classes, ...] or [N, ..., classes].
        labels: [N, ...].

    Raises:
        TrainingError: the shapes allow both.
    """
    is_last, is_first = labels.shape == logits.shape[:-1], labels.shape == logits.shape[:1] + logits.shape[2:]
    if is_last and is_first:
        raise TrainingError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)}: classes may be in dim 1 or in the last; give "
            "loss=(output, batch) -> Tensor, and Distillation(dim=)"
        )
    return -1 if is_last else 1


def logits_of(output: Any) -> Tensor:
    """Return the logits of an output: a tensor, its field or entry `logits`, or the first item of a tuple or list.

    Raises:
        TrainingError: the output has no logits.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and isinstance(output[0], Tensor):
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise TrainingError(f"no logits in a {type(output).__name__}: give a forward that returns a tensor")
    return logits
