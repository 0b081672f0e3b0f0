"""Every criterion by name, with what it needs: one table for the command line, the tests and docs/criteria.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bough.errors import PlanError
from bough.importance.activation import ActivationMean, ActivationVariance, APoZ, HRank, Sensitivity
from bough.importance.consumer import FLAP, Wanda
from bough.importance.data import Loss
from bough.importance.depth import BlockInfluence
from bough.importance.gradient import OBD, Fisher, GateTaylor, Taylor
from bough.importance.magnitude import LAMP, GroupNorm, Magnitude, NormScale, Random
from bough.importance.masking import MaskedLoss, Shapley
from bough.importance.reconstruction import OBS, ThiNet
from bough.importance.redundancy import CosineRedundancy, GeometricMedian

Needs = Literal["weights", "inputs", "loss"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A criterion: how it is made (with a loss where it needs one), and what it scores: units, or whole layers."""

    make: Callable[..., Any]
    needs: Needs
    scores: Literal["units", "layers"] = "units"


CRITERIA: dict[str, Entry] = {
    "l1": Entry(lambda: Magnitude(p=1), "weights"),
    "l2": Entry(lambda: Magnitude(p=2), "weights"),
    "group": Entry(GroupNorm, "weights"),
    "lamp": Entry(LAMP, "weights"),
    "norm_scale": Entry(NormScale, "weights"),
    "fpgm": Entry(GeometricMedian, "weights"),
    "cosine": Entry(CosineRedundancy, "weights"),
    "random": Entry(Random, "weights"),
    "taylor": Entry(Taylor, "loss"),
    "taylor_element": Entry(lambda loss: Taylor(loss, form="element"), "loss"),
    "taylor_square": Entry(lambda loss: Taylor(loss, form="square"), "loss"),
    "gate_taylor": Entry(GateTaylor, "loss"),
    "gate_taylor_signed": Entry(lambda loss: GateTaylor(loss, signed=True), "loss"),
    "fisher": Entry(Fisher, "loss"),
    "obd": Entry(OBD, "loss"),
    "sensitivity": Entry(Sensitivity, "loss"),
    "masked_loss": Entry(MaskedLoss, "loss"),
    "shapley": Entry(Shapley, "loss"),
    "activation_mean": Entry(ActivationMean, "inputs"),
    "activation_variance": Entry(ActivationVariance, "inputs"),
    "apoz": Entry(APoZ, "inputs"),
    "hrank": Entry(HRank, "inputs"),
    "wanda": Entry(Wanda, "inputs"),
    "flap": Entry(FLAP, "inputs"),
    "thinet": Entry(ThiNet, "inputs"),
    "obs": Entry(OBS, "inputs"),
    "block_influence": Entry(BlockInfluence, "inputs", scores="layers"),
}


def criterion(name: str, loss: Loss | None = None) -> Any:
    """The criterion called `name`, as its defaults make it.

    Raises:
        PlanError: an unknown name, or one that needs a loss and is given none.

    Example:
        >>> criterion("l1")
        Magnitude(p=1)
    """
    if name not in CRITERIA:
        raise PlanError(f"there is no criterion {name!r}: use one of {', '.join(CRITERIA)}")
    entry = CRITERIA[name]
    if entry.needs != "loss":
        return entry.make()
    if loss is None:
        raise PlanError(f"the criterion {name!r} needs a loss: criterion({name!r}, loss) with loss(model, batch) -> a number")
    return entry.make(loss)
