"""Calling conventions of loss functions, recognized by the names and annotations of their parameters.

    loss(model, batch)    runs the model itself
    loss(output, batch)   is called with the output of the model
    loss(output, labels)  is called with the output and the second part of the batch, as F.cross_entropy is

`score`, `compare`, `finetune` and `distill` accept all three. If neither names nor annotations decide, the convention is the
one that the documentation of the function states.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from bough.errors import ArgumentError

Convention = Literal["model", "output", "labels"]

_FIRST_PARAMETER: dict[str, Convention] = {
    **dict.fromkeys(("model", "net", "network", "module", "student"), "model"),
    **dict.fromkeys(("output", "outputs", "out", "logits", "pred", "preds", "prediction", "predictions", "y_hat"), "output"),
}
_LABELS = ("target", "targets", "label", "labels", "y_true")
_CALLS = {"model": "loss(model, batch)", "output": "loss(output, batch)", "labels": "loss(output, labels)"}


def calling_convention(loss: Callable[..., Any], default: Convention) -> Convention:
    """Return the calling convention of `loss`; `default` if its parameters do not show it.

    Example:
        >>> import torch
        >>> calling_convention(lambda model, batch: 0, "output"), calling_convention(torch.nn.CrossEntropyLoss(), "model")
        ('model', 'labels')
    """
    try:
        parameters = list(inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values())
    except (TypeError, ValueError):  # a builtin function has no signature
        return default
    names = [p.name for p in parameters]
    annotation = parameters[0].annotation if parameters else None
    first_type = annotation.__name__ if isinstance(annotation, type) else str(annotation).rpartition(".")[2]
    if names and (_FIRST_PARAMETER.get(names[0]) == "model" or first_type == "Module"):
        return "model"
    if len(names) > 1 and names[1] in _LABELS:
        return "labels"
    return "output" if names and (names[0] in _FIRST_PARAMETER or first_type == "Tensor") else default


def as_model_loss(loss: Callable[..., Any], run: Callable[[nn.Module, Any], Any]) -> Callable[[nn.Module, Any], Any]:
    """Return `loss` as a function of (model, batch).

    Args:
        loss: of any calling convention; of (model, batch) if its parameters do not show one.
        run: (model, batch) -> output, for losses that take the output.

    Raises:
        ArgumentError: from the returned function: the call fails, or there are no labels.
    """
    convention = calling_convention(loss, "model")
    if convention == "model":
        return _with_explained_errors(loss, convention)
    output_loss = as_output_loss(loss)
    return lambda model, batch: output_loss(run(model, batch), batch)


def as_output_loss(loss: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return `loss` as a function of (output, batch).

    Args:
        loss: takes the output and the batch, or the output and labels.

    Raises:
        ArgumentError: from the returned function: the call fails, or there are no labels.
    """
    if calling_convention(loss, "output") != "labels":
        return _with_explained_errors(loss, "output")
    labels_loss = _with_explained_errors(loss, "labels")
    return lambda output, batch: labels_loss(_logits(output), _labels(batch))


def _with_explained_errors(loss: Callable[..., Any], convention: Convention) -> Callable[[Any, Any], Any]:
    """Return `loss` such that its failures state how it was called, because the convention may have been misjudged."""

    def call(first: Any, second: Any) -> Any:
        try:
            return loss(first, second)
        except (AttributeError, TypeError) as error:
            name = getattr(loss, "__name__", type(loss).__name__)
            reason = (str(error).splitlines() or [""])[0]
            raise ArgumentError(
                f"the loss {name}, called as {_CALLS[convention]}, fails ({type(error).__name__}: {reason}): a loss that runs "
                "the model names its first parameter `model`, one that is given what the model returned names it `output`"
            ) from error

    return call


def _logits(output: Any) -> Any:
    """Return the `logits` of a model output, or the output itself if it has none."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return output if logits is None else logits


def _labels(batch: Any) -> Any:
    """Return the labels of a batch: the entry "labels", or the second of two parts."""
    if isinstance(batch, Mapping) and "labels" in batch:
        return batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[1]
    raise ArgumentError(
        f"loss(output, labels) needs batches that are pairs (inputs, labels) or dicts with 'labels', and a batch is a "
        f"{type(batch).__name__}: give loss(output, batch)"
    )
