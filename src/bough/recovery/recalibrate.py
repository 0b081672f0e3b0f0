"""`recalibrate`: recompute the running statistics of batch norms on data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bough.arguments import check_arguments
from bough.calibration import Data, as_data, copy_to_device, forward_inputs, parameter_device, preserve_state
from bough.calls import as_calls
from bough.errors import PlanError
from bough.tracing.capture.wrapped import unwrap


def recalibrate(small: nn.Module, data: Data | Iterable[Any]) -> nn.Module:
    """Set running means and variances of all batch norms to those of their inputs on `data`, in place; return the model.

    During the pass each batch norm normalizes by the statistics of the batch, as in training, and everything else is in eval
    mode. Batch norms that do not run in eval mode, as in auxiliary heads, stay as they are. Mean and (unbiased) variance are
    over all batches together, each sample with the same weight. Use this after a cut without refit: refit matches the
    outputs of layers directly, which is better.

    Args:
        small: a model with batch norms.
        data: batches, as for `score`.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: the model has no batch norm with running statistics, the data is empty or gives NaN, or a batch has one
            value per channel, which has no variance.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        >>> x = torch.randn(64, 2)
        >>> means = recalibrate(net, [x])[1].running_mean
        >>> torch.allclose(means, net[0](x).mean(0), atol=1e-6)
        True
    """
    check_arguments(recalibrate, locals())
    model, batches = unwrap(small), as_data(data, "recalibrate")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise PlanError(f"{type(model).__name__} has no batch norm with running statistics")
    sums = {m: torch.zeros(3, m.num_features, dtype=torch.float64) for m in norms}
    names = {m: n for n, m in model.named_modules()}
    hooks = [
        m.register_forward_pre_hook(
            lambda m, args, kwargs: _accumulate(sums[m], args[0] if args else kwargs["input"], names[m]), with_kwargs=True
        )
        for m in norms
    ]
    try:
        with torch.no_grad(), preserve_state(model):
            for m in norms:
                m.training = True
            for batch in batches.batches:
                _run(model, batches, batch)
    finally:
        for hook in hooks:
            hook.remove()
    observed = {m: s for m, s in sums.items() if s[0].any()}
    if not observed or not all(s.isfinite().all() for s in observed.values()):
        raise PlanError("the batch norms have read nothing, or NaN or infinity, on this data")
    with torch.no_grad():
        for m, s in observed.items():
            _set_statistics(m, *s)
    return small


def _run(model: nn.Module, data: Data, batch: Any) -> None:
    """Run the model on a batch."""
    if data.forward is not None:
        data.forward(model, batch)
        return
    (call,) = as_calls(copy_to_device(forward_inputs(model, batch), parameter_device(model)))
    call(model)


def _accumulate(sums: Tensor, x: Tensor, name: str) -> None:
    """Add the number of values per channel of x [N, C, ...], their sum and their sum of squares to `sums` [3, C]."""
    values = x.detach().transpose(0, 1).flatten(1).double()
    if values.shape[1] < 2:
        raise PlanError(f"a batch gives {name} one value of each channel: no variance; give larger batches (drop_last)")
    sums += torch.stack([torch.full((len(values),), values.shape[1]).to(values), values.sum(1), values.square().sum(1)]).cpu()


def _set_statistics(norm: _BatchNorm, count: Tensor, total: Tensor, squares: Tensor) -> None:
    """Set running mean and variance from sums per channel [C]."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = total / count
    norm.running_mean.copy_(mean)
    norm.running_var.copy_((squares - total * mean).clamp_min(0) / (count - 1).clamp_min(1))
