"""`refit`: solve the weights of a cut model so that its layers reproduce the outputs of the dense model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import nn

from bough.arguments import check_arguments
from bough.calibration import (
    Data,
    as_data,
    example_inputs_from,
    preserve_state,
    require_batch_in_each_process,
    require_equal_in_processes,
    require_reiterable,
)
from bough.cutting.check import check, check_weights
from bough.cutting.cut import copied
from bough.errors import PlanError
from bough.graph import Graph
from bough.planning import Plan
from bough.recovery.correspondence import check_cut_shapes
from bough.recovery.refit.layerwise import LayerwiseRefit
from bough.recovery.refit.records import RefitOptions, RefittedLayer, table_of
from bough.tracing import trace
from bough.tracing.capture.execution import model_tensors
from bough.tracing.capture.wrapped import traceable
from bough.tracing.contractions import consumed
from bough.tracing.fingerprint import weights_digest


@dataclass(frozen=True, slots=True)
class Refit:
    """Result of `refit`.

    Attributes:
        model: the refitted model.
        layers: for each refitted weight, the error before and after.
        skipped: weights that were not refitted, with the reason.
        plan: by which the model was cut.
    """

    model: nn.Module
    layers: tuple[RefittedLayer, ...]
    skipped: dict[str, str]
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """Return layers and skipped weights as plain values, for JSON."""
        return {"layers": [x.to_dict() for x in self.layers], "skipped": dict(self.skipped)}

    def __str__(self) -> str:
        return table_of(self.layers, self.skipped)

    __repr__ = __str__


def refit(model: nn.Module, small: nn.Module, plan: Plan, data: Data | Iterable[Any], **options: Any) -> Refit:
    """Return a copy of `small` whose weights reproduce the outputs of `model` by least squares.

    Args:
        model: the dense model; stays as it is.
        small: the model cut from it by `plan`; stays as it is.
        plan: by which `small` was cut.
        data: batches, as for `score`.
        options: as for `refit_`.

    Raises:
        ArgumentError, PlanError, TraceError: as for `refit_`.

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
    biases_only: bool = False,
    example_inputs: Any = None,
    memory: int = 2**31,
) -> Refit:
    """Refit the weights of the cut model in place, without labels and without training; if it fails, nothing is changed.

    In the order of the run, each weight W whose input was changed by the cut becomes the minimizer of
    E|Y - X W - b|^2 + ridge mean(diag H) |W - W_cut|^2. X is the layer's input in the cut model, whose earlier layers are
    refitted already, so errors do not accumulate. Y is the output of the same layer in the dense model on its own inputs,
    for the kept units. H is the covariance of X. The constant b is solved for if there is a bias, or a batch norm whose
    running mean can absorb it. If the output is added to an earlier value, as in a residual stream, Y also compensates for
    the error of that value. Depthwise layers are fitted channel by channel; later layers that mix channels compensate for
    the remaining error.

    With `biases_only`, W stays, and only b is solved for: b takes the mean of the error, E[Y - X W]. For a single layer this
    adds W_removed^T E[x_removed] to its bias. A layer without a bias, or a batch norm behind it, stays as it is and is listed.

    Source: He et al., 2017 (channel pruning by least squares); Stone, 1974 (cross-validation of `ridge`); An et al., 2024
        (FLAP: `biases_only`).

    Args:
        model: the dense model; stays as it is.
        small: the model cut from it by `plan`; may have been trained or refitted since.
        plan: by which `small` was cut.
        data: batches, as for `score`; has to give the same batches in the same order in each iteration. With
            `Data(distributed=True)`, each process gives its share, at least one batch, and each gets the same weights.
        ridge: strength of the regularization towards the current weights, relative to the mean variance of X. Unless given,
            each weight gets the weakest power of ten from 1e-3 to 100 whose cross-validation error is within 5 % of the best:
            fitted on three quarters of the batches, tested on the fourth (with a single batch: of its rows).
        sites: output positions per sample at which a convolution is sampled.
        everything: whether to refit all weights whose inputs have changed, not only those that read cut units.
        skips: whether to compensate for the error of the value to which an output is added.
        biases_only: whether weights stay and biases alone compensate: two runs and running means, no products of inputs.
        example_inputs: as for `trace`; needed if `data` is a `Data` with a `forward` of its own.
        memory: bytes that half-finished runs, kept between layers, may take; further batches are re-run for each layer.

    Returns:
        `small`, with the errors of each layer before and after.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: the plan is for another model or for other weights, `small` was cut by another plan, no weight can be
            refitted, `ridge` is given with `biases_only`, or the data is empty or gives NaN.
        TraceError: on this data a model takes another path than on its first batch.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> x = torch.randn(256, 4)
        >>> result = bough.prune(net, x[:2], bough.Budget(params="50%"))
        >>> refit_(net, result.model, result.plan, [x], ridge=0.01).layers[0].ridge
        0.01
    """
    check_arguments(refit_, locals())
    if (ridge is not None and not 0 <= ridge < inf) or sites < 1:
        raise PlanError(f"refit(ridge={ridge}, sites={sites}): ridge must be a number that is not negative, sites at least 1")
    if ridge is not None and biases_only:
        raise PlanError("refit(ridge=..., biases_only=True): ridge holds weights back, and biases_only leaves them; give one")
    dense, cut, batches = traceable(model), traceable(small), as_data(data)
    if dense is cut:
        raise PlanError("model and small are one: small is a copy of model that the plan has cut")
    if plan.rebuild:
        raise PlanError(
            "the plan was carried out by `rebuild`, and refit can not follow an exported program: fine-tune instead"
        )
    check(dense, plan)
    check_weights(dense, plan)
    check_cut_shapes(cut, plan)
    require_reiterable(batches)
    require_batch_in_each_process(batches)
    first = example_inputs_from(dense, batches, plan.inputs) if example_inputs is None else example_inputs
    with preserve_state(dense), preserve_state(cut):
        graphs = trace(dense, first), trace(cut, first)
    if batches.distributed:
        traced = [(g.fingerprint, len(g.ops), weights_digest(g.model)) for g in graphs]
        require_equal_in_processes(traced, "the models, their weights or their traced runs: load and cut the same in all")
    with preserve_state(dense, graphs[0].written), preserve_state(cut, graphs[1].written), _restore_on_failure(cut):
        fit = LayerwiseRefit(*graphs, plan, batches, RefitOptions(ridge, sites, everything, skips, biases_only))
        fit.run(memory)
    with torch.no_grad():
        for buffer, value in fit.running_means:
            buffer.copy_(value)
    return Refit(small, tuple(fit.layers), {**fit.skipped, **_of_other_calls(graphs[0], plan)}, plan)


def _of_other_calls(dense: Graph, plan: Plan) -> dict[str, str]:
    """Return why weights that read what was cut in another call than the first were not refitted, by name."""
    first = {state for op in dense.ops for state in op.states}
    reading = {name for name, dim in consumed(dense) if dim in plan.kept.get(name, {}) and name not in first}
    return dict.fromkeys(sorted(reading), "only another call reads it, and data was passed through the first call")


@contextmanager
def _restore_on_failure(model: nn.Module) -> Iterator[None]:
    """Restore the parameters of a model if the context raises."""
    before = [(t, t.detach().clone()) for _, t, is_parameter, _ in model_tensors(model) if is_parameter]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        raise
