"""`refit`: the cut model's weights solved anew, layer by layer, for what the dense model gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import nn

from bough.arguments import check_arguments
from bough.calibration import Data, as_data, example_inputs_from, preserve_state
from bough.cutting.check import check, check_weights
from bough.cutting.cut import copied
from bough.errors import PlanError
from bough.planning.plan import Plan
from bough.recovery.fitting import Fitting, Layer, Options
from bough.recovery.pairing import check_cut
from bough.tracing.execution import held_tensors
from bough.tracing.trace import trace
from bough.tracing.wrapped import traceable


@dataclass(frozen=True, slots=True)
class Refit:
    """What `refit` gives: the model, and for each layer its error before and after; `skipped`: what was left, and why; `plan`:
    the one that the model was cut by."""

    model: nn.Module
    layers: tuple[Layer, ...]
    skipped: dict[str, str]
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        return {"layers": [x.to_dict() for x in self.layers], "skipped": dict(self.skipped)}

    def __str__(self) -> str:
        lines = [f"{'refitted':56} {'error':>9} {'after':>9} {'ridge':>7}"]
        lines += [
            f"{x.name:56} {x.before:9.2%} {x.after:9.2%} {x.ridge:7.0e}{f'  ({x.note})' if x.note else ''}" for x in self.layers
        ]
        lines += [f"not refitted: {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)

    __repr__ = __str__


def refit(model: nn.Module, small: nn.Module, plan: Plan, data: Data | Iterable[Any], **options: Any) -> Refit:
    """A copy of `small` whose weights reproduce what `model` computes, by least squares; see `refit_`.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> x = torch.randn(256, 4)
        >>> result = bough.prune(net, x[:2], bough.Budget(params="50%"))
        >>> refitted = refit(net, result.model, result.plan, x.split(64))
        >>> [layer.after <= layer.before for layer in refitted.layers]
        [True]
    """
    check_arguments(refit, locals())
    return refit_(model, copied(small, lambda name, tensor, parameter: tensor.clone())[0], plan, data, **options)


def refit_(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    data: Data | Iterable[Any],
    *,
    ridge: float | None = None,
    sites: int = 128,
    everything: bool = True,
    skips: bool = True,
    example_inputs: Any = None,
    memory: int = 2**31,
) -> Refit:
    """Solves the weights of the cut model anew, in place; no labels, no training. All or nothing; `model` stays as it was.

    In the order of the run, each weight W that reads what the cut has changed becomes that of least
    E|Y - X W - b|^2 + ridge mean(diag H) |W - W_cut|^2: X is its input in the cut model, refitted so far, Y the dense
    model's output of the same op on its own inputs, of the units kept, and H the covariance of X. So errors do not pile up.
    The constant b is solved for where there is a bias, or a batch norm whose running mean can take it. Where the output is
    added to what was there before, as in a residual stream, Y makes up for the error of that, too. Depthwise layers are
    fitted channel by channel; mixing layers after them make up for the rest.

    Args:
        model: the dense model. small: the model cut from it by `plan`; may have been trained or refitted since.
        data: batches, as for `score`; gone through in the same order each time.
        ridge: how much weights are held back. Without it, each weight gets a power of ten of its own, from 1e-3 to 100: the
            weakest with which what three quarters of the batches give is as good on the fourth as it gets, within 5 % (of one
            batch: of its rows).
        sites: output positions of each sample that a convolution is looked at.
        everything: refit all weights whose inputs have changed, not only those that read cut units.
        skips: make up for the error of what an output is added to.
        example_inputs: as for `trace`, where `data` is a `Data` with a `forward` of its own.
        memory: bytes that runs which wait for the next layer may hold; batches beyond are run anew for each.

    Raises:
        PlanError: the plan is for another model or for other weights, `small` was cut by another plan, no weight can be
            refitted, or the data is empty or gives NaN.
        TraceError: on this data a model takes another path than on its first batch.
    """
    check_arguments(refit_, locals())
    if (ridge is not None and not 0 <= ridge < inf) or sites < 1:
        raise PlanError(f"refit(ridge={ridge}, sites={sites}): ridge must be a number that is not negative, sites at least 1")
    dense, cut, stream = traceable(model), traceable(small), as_data(data)
    if dense is cut:
        raise PlanError("model and small are one: small is a copy of model that the plan has cut")
    if plan.rebuild:
        raise PlanError(
            "the plan was carried out by `rebuild`, and refit can not follow an exported program: fine-tune instead"
        )
    check(dense, plan)
    check_weights(dense, plan)
    check_cut(cut, plan)
    first = example_inputs_from(dense, stream, plan.inputs) if example_inputs is None else example_inputs
    with preserve_state(dense), preserve_state(cut):
        graphs = trace(dense, first), trace(cut, first)
    with preserve_state(dense, graphs[0].written), preserve_state(cut, graphs[1].written), _all_or_nothing(cut):
        fitting = Fitting(*graphs, plan, stream, Options(ridge, sites, everything, skips))
        fitting.run(memory)
    with torch.no_grad():
        for buffer, value in fitting.means:
            buffer.copy_(value)
    return Refit(small, tuple(fitting.layers), fitting.skipped, plan)


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[None]:
    before = [(t, t.detach().clone()) for _, t, parameter, _ in held_tensors(model) if parameter]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        raise
