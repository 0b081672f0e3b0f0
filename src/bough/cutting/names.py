"""Names of a cut model's tensors in the original: lists that lose layers renumber the rest."""

from __future__ import annotations

import copy

from torch import nn

from bough.planning.plan import Plan
from bough.tracing.capture.attribute_numbers import rewrite
from bough.tracing.capture.execution import model_tensors
from bough.tracing.typing.layers import leave_out


def shortened(model: nn.Module, plan: Plan) -> nn.Module:
    """Return the model without the layers that `plan` leaves out: another module around the same tensors."""
    if not plan.left_out:
        return model
    short = copy.deepcopy(model, {id(t): t for _, t, _, _ in model_tensors(model)})
    rewrite(short, plan.attributes, plan.sequences)
    leave_out(short, [(name, *replacement) for name, replacement in plan.left_out.items()])
    return short


def original_names(model: nn.Module, plan: Plan) -> dict[str, str]:
    """Return {name in the cut model: name in `model`} of all tensors that stay."""
    before = {id(t): name for name, t, _, _ in model_tensors(model)}
    return {name: before[id(t)] for name, t, _, _ in model_tensors(shortened(model, plan)) if id(t) in before}
