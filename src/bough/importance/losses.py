"""What a loss function is called with: the model, or what the model returned; told apart by the names of its parameters.

    loss(model, batch)    runs the model itself
    loss(output, batch)   is given what the model returned
    loss(output, labels)  likewise, and the second part of the batch, as F.cross_entropy and torch's loss modules are

`score`, `compare`, `finetune` and `distill` take all three. A loss whose parameters have other names, and no annotation that
tells, is called as the documentation of the function says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from bough.errors import ArgumentError

Convention = Literal["model", "output", "labels"]

_NAMES: dict[str, Convention] = {
    **dict.fromkeys(("model", "net", "network", "module", "student"), "model"),
    **dict.fromkeys(("output", "outputs", "out", "logits", "pred", "preds", "prediction", "predictions", "y_hat"), "output"),
}
_LABELS = ("target", "targets", "label", "labels", "y_true")
_CALLS = {"model": "loss(model, batch)", "output": "loss(output, batch)", "labels": "loss(output, labels)"}


def convention(loss: Callable[..., Any], otherwise: Convention) -> Convention:
    """Return what `loss` is called with; `otherwise` where its parameters do not tell.

    Example:
        >>> import torch
        >>> convention(lambda model, batch: 0, "output"), convention(torch.nn.CrossEntropyLoss(), "model")
        ('model', 'labels')
    """
    try:
        parameters = list(inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values())
    except (TypeError, ValueError):  # a builtin
        return otherwise
    names = [p.name for p in parameters]
    first = parameters[0].annotation if parameters else None
    told = first.__name__ if isinstance(first, type) else str(first).rpartition(".")[2]
    if names and (_NAMES.get(names[0]) == "model" or told == "Module"):
        return "model"
    if len(names) > 1 and names[1] in _LABELS:
        return "labels"
    return "output" if names and (names[0] in _NAMES or told == "Tensor") else otherwise


def called_with_model(loss: Callable[..., Any], run: Callable[[nn.Module, Any], Any]) -> Callable[[nn.Module, Any], Any]:
    """Return `loss` as a function of (model, batch); one that takes the output is given what `run(model, batch)` returns."""
    kind = convention(loss, "model")
    if kind == "model":
        return _explained(loss, kind)
    of_output = called_with_output(loss)
    return lambda model, batch: of_output(run(model, batch), batch)


def called_with_output(loss: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return `loss`, one that does not run the model, as a function of (output, batch)."""
    if convention(loss, "output") != "labels":
        return _explained(loss, "output")
    told = _explained(loss, "labels")
    return lambda output, batch: told(_logits(output), _labels(batch))


def _explained(loss: Callable[..., Any], kind: Convention) -> Callable[[Any, Any], Any]:
    """Return `loss`, whose failures say how it was called, as that may be what is wrong."""

    def called(first: Any, second: Any) -> Any:
        try:
            return loss(first, second)
        except (AttributeError, TypeError) as error:
            name = getattr(loss, "__name__", type(loss).__name__)
            reason = (str(error).splitlines() or [""])[0]
            raise ArgumentError(
                f"the loss {name}, called as {_CALLS[kind]}, fails ({type(error).__name__}: {reason}): a loss that runs the "
                "model names its first parameter `model`, one that is given what the model returned names it `output`"
            ) from error

    return called


def _logits(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return output if found is None else found


def _labels(batch: Any) -> Any:
    if isinstance(batch, Mapping) and "labels" in batch:
        return batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[1]
    raise ArgumentError(
        f"loss(output, labels) needs batches that are pairs (inputs, labels) or dicts with 'labels', and a batch is a "
        f"{type(batch).__name__}: give loss(output, batch)"
    )
