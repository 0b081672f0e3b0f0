"""All criteria by name, with what they need: the table behind the command line, the tests and docs/criteria.md."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Literal

from bough.arguments import check_arguments
from bough.calibration import Loss
from bough.errors import PlanError
from bough.importance.activation import ActivationMean, ActivationVariance, APoZ, HRank
from bough.importance.contribution import REAP
from bough.importance.depth import BlockInfluence
from bough.importance.expert_clusters import ExpertClusters
from bough.importance.gradient import OBD, Fisher, GateTaylor, Sensitivity, Taylor
from bough.importance.layer_loss import LayerLoss
from bough.importance.magnitude import LAMP, GroupNorm, Magnitude, NormScale, Random
from bough.importance.masking import MaskedLoss, Shapley
from bough.importance.protocols import Criterion, DataCriterion
from bough.importance.reconstruction import OBS, ThiNet
from bough.importance.redundancy import CosineRedundancy, GeometricMedian
from bough.importance.weighted_activation import FLAP, Wanda

Needs = Literal["weights", "inputs", "loss"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A criterion of the registry.

    Attributes:
        make: constructor; its first argument is the loss, if the criterion needs one.
        needs: whether the criterion reads weights alone, inputs (data without labels), or a loss (data with labels).
        scores: whether it scores units or whole layers.
    """

    make: Callable[..., Criterion | DataCriterion]
    needs: Needs
    scores: Literal["units", "layers"] = "units"


CRITERIA: dict[str, Entry] = {
    "l1": Entry(partial(Magnitude, p=1), "weights"),
    "l2": Entry(partial(Magnitude, p=2), "weights"),
    "group": Entry(GroupNorm, "weights"),
    "lamp": Entry(LAMP, "weights"),
    "norm_scale": Entry(NormScale, "weights"),
    "fpgm": Entry(GeometricMedian, "weights"),
    "cosine": Entry(CosineRedundancy, "weights"),
    "random": Entry(Random, "weights"),
    "taylor": Entry(Taylor, "loss"),
    "taylor_element": Entry(partial(Taylor, form="element"), "loss"),
    "taylor_group": Entry(partial(Taylor, form="group"), "loss"),
    "taylor_square": Entry(partial(Taylor, form="square"), "loss"),
    "gate_taylor": Entry(GateTaylor, "loss"),
    "gate_taylor_signed": Entry(partial(GateTaylor, signed=True), "loss"),
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
    "reap": Entry(REAP, "inputs"),
    "expert_clusters": Entry(ExpertClusters, "inputs"),
    "thinet": Entry(ThiNet, "inputs"),
    "obs": Entry(OBS, "inputs"),
    "block_influence": Entry(BlockInfluence, "inputs", scores="layers"),
    "layer_loss": Entry(LayerLoss, "loss", scores="layers"),
}


def criterion(name: str, loss: Loss | None = None) -> Any:
    """Return the criterion called `name`, with its defaults except for options in parentheses.

    Args:
        name: a key of `CRITERIA`, with options as in "obs(relative=True)".
        loss: for criteria that need one, see `bough.calibration.losses`.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: an unknown name or option, or a criterion that needs a loss without one.

    Example:
        >>> criterion("l1"), criterion("thinet(sites=64, relative=True)")
        (Magnitude(p=1), ThiNet(sites=64, step=1, relative=True, probes=0))
    """
    check_arguments(criterion, locals())
    entry, options = parse_criterion(name)
    if entry.needs == "loss" and loss is None:
        raise PlanError(f"the criterion {name!r} needs a loss: criterion({name!r}, loss) with loss(model, batch) -> a number")
    known = [n for n in signature(entry.make).parameters if n != "loss"]
    unknown = [n for n in options if n not in known]
    if unknown:
        raise PlanError(f"the criterion {name!r} has no option {unknown[0]!r}: {', '.join(known) or 'it has none'}")
    try:
        return entry.make(*([loss] if entry.needs == "loss" else []), **options)
    except TypeError as error:
        raise PlanError(f"the criterion {name!r}: {error}") from error


def parse_criterion(name: str) -> tuple[Entry, dict[str, Any]]:
    """Return the entry of a criterion's name and the options in parentheses, as in "obs(relative=True)".

    Raises:
        PlanError: an unknown name, or parentheses that hold no options.
    """
    plain, parenthesis, _ = name.partition("(")
    if plain.strip() not in CRITERIA:
        raise PlanError(f"there is no criterion {plain.strip()!r}: use one of {', '.join(CRITERIA)}")
    if not parenthesis:
        return CRITERIA[name.strip()], {}
    try:
        call = ast.parse(name.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise PlanError(
            f"{name!r}: options are numbers, strings, True or False, as in thinet(sites=64, relative=True)"
        ) from None
    return CRITERIA[plain.strip()], options


def resolve_criterion(value: str | Criterion | DataCriterion) -> Criterion | DataCriterion:
    """Return the criterion of a name, or a criterion object as it is.

    Raises:
        PlanError: as `criterion`.
    """
    if not isinstance(value, str):
        return value
    named: Criterion | DataCriterion = criterion(value)
    return named
