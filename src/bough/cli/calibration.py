"""Calibration data, the loss on it and the criteria that read them, as commands take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from torch import Tensor, nn
from torch.nn import functional as F

from bough.calibration import Data, Loss, as_data, copy_to_device
from bough.cli.references import call, find, is_reference, with_options
from bough.errors import ModelReferenceError
from bough.importance import CRITERIA, criterion, parse_criterion
from bough.recovery.training import logits_of

KNOWN = (
    ", ".join(name for name, entry in CRITERIA.items() if entry.scores == "units")
    + "; options as in obs(relative=True); or one of your own, module:Criterion"
)
LAYERS = ", ".join(name for name, entry in CRITERIA.items() if entry.scores == "layers")

Batches = Annotated[str | None, typer.Option(help="module:fn; fn() gives batches, for criteria on data and --refit")]
LossOf = Annotated[
    str | None, typer.Option(help="module:fn; fn(model, batch) is the loss; cross-entropy of (inputs, labels) unless given")
]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Batches, if any, and the loss on them."""

    data: Data | None
    loss: Loss

    def criterion(self, text: str) -> Any:
        """Return the criterion of a name such as "obs(relative=True)", or of a reference to one of the user's own."""
        return with_options(text, loss=self.loss) if is_reference(text) else criterion(text, self.loss)


def calibration(data: str | None, loss: str | None, criteria: Iterable[str], *, progress: bool) -> Calibration:
    """What `--data` and `--loss` name.

    Raises:
        ModelReferenceError: `--data` gives no batches, or one of `criteria` needs the loss and the batches are no pairs.
    """
    made = None if data is None else batches(data, progress=progress)
    if loss is not None:
        given = find(loss)
        if not callable(given):
            raise ModelReferenceError(f"--loss: {loss} is a {type(given).__name__}: fn(model, batch) is wanted")
        return Calibration(made, given)
    if made is not None and any(parse_criterion(n)[0].needs == "loss" for n in criteria if not is_reference(n)):
        _pairs(made)
    return Calibration(made, cross_entropy)


def batches(reference: str, *, progress: bool = False) -> Data:
    """What `module:callable` returns: batches that can be gone through more than once."""
    made = call(reference)
    if not hasattr(as_data(made).batches, "__iter__"):
        raise ModelReferenceError(f"{reference} returned {type(made).__name__}: an iterable of batches is wanted")
    if isinstance(made, Data):
        return made
    return Data(list(made) if isinstance(made, Iterator) else made, progress=progress)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """The loss unless one is given: cross-entropy of the logits [N, classes, ...] of a pair (inputs, labels)."""
    x, labels = copy_to_device(batch, next(model.parameters()).device)
    return F.cross_entropy(logits_of(model(x)), labels)


def _pairs(data: Data) -> None:
    batch = next(iter(data.batches), None)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ModelReferenceError(
            f"--data gives batches ({type(batch).__name__}) that are no pairs (inputs, labels), which cross-entropy needs: "
            "give --loss module:fn with fn(model, batch)"
        )
