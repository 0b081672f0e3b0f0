"""`synthesize`: calibration inputs made from the running statistics of batch norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bough.arguments import check_arguments
from bough.calibration.batches import traced_batch
from bough.calibration.data import Data, show_progress
from bough.calibration.taps import Tap, preserve_state, tapped
from bough.errors import PlanError
from bough.graph import Graph, OpRecord
from bough.tracing.capture.inputs import with_tensors
from bough.tracing.capture.tree import tensors_within
from bough.tracing.flow import statistics

_RATE = 0.1  # Adam's learning rate, in standard deviations of the example inputs; it falls to 0 along a cosine
_SPREAD = 0.25  # weight of the squared log ratio of variances, which is 4 times a squared relative error of deviations


def synthesize(
    graph: Graph, *, samples: int = 128, batch_size: int = 64, steps: int = 60, seed: int = 0, progress: bool = False
) -> list[Any]:
    """Return batches of inputs on which batch norms see the means and variances of the data they were trained on.

    Each batch starts as normal noise with the mean and deviation of the example inputs and is optimized by Adam: at every
    batch norm that runs in eval mode, the mean and the log variance per channel are drawn to the running ones. The inputs
    stand in for calibration data where there is none: for `bough.score`, `bough.refit` and `bough.prune(data=...)`. Real
    data is better.

    Source: Cai et al., ZeroQ, 2020 (distilled data); Yin et al., DeepInversion, 2020.

    Args:
        graph: of the model, traced in eval mode; the model stays as it is.
        samples: how many inputs to make, a whole number of batches.
        batch_size: samples in each batch; statistics are matched over a batch.
        steps: optimizer steps for each batch, a forward and a backward pass each.
        seed: of the noise; the global random state is not changed.
        progress: whether to show a progress bar.

    Returns:
        Batches as `bough.score` takes them: a tensor, a tuple of arguments, or a dict of keyword arguments, each with
        `batch_size` samples. Integer and boolean inputs are repeated from the example inputs.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: a number below 1, no batch norm of the traced run has running statistics, or the inputs are no floats.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> batches = synthesize(bough.trace(net.eval(), torch.randn(2, 3, 8, 8)), samples=16, batch_size=8, steps=2)
        >>> [tuple(batch.shape) for batch in batches]
        [(8, 3, 8, 8), (8, 3, 8, 8)]
    """
    check_arguments(synthesize, locals())
    for name, value in (("samples", samples), ("batch_size", batch_size), ("steps", steps)):
        if value < 1:
            raise PlanError(f"synthesize({name}={value!r}): {name} must be a whole number, at least 1")
    norms = running_norms(graph)
    if not norms:
        raise PlanError(
            f"{type(graph.model).__name__} has no batch norm with running statistics in the traced run, so inputs cannot be "
            "synthesized: give real data"
        )
    generator = torch.Generator().manual_seed(seed)
    batches = range(-(-samples // batch_size))
    shown = show_progress(batches, "synthesize inputs", len(batches)) if progress else batches
    with preserve_state(graph.model, graph.written):
        for p in graph.model.parameters():
            p.requires_grad_(False)
        return [_synthesize_batch(graph, norms, batch_size, steps, generator) for _ in shown]


def running_norms(graph: Graph) -> list[OpRecord]:
    """Return the batch norms of the traced run that normalize by running statistics."""
    return [op for op in graph.ops if op.name == "batch_norm" and len(statistics(graph, op)) == 2]


def keeps_statistics(graph: Graph) -> bool:
    """Return whether a batch norm has running statistics of data: not means of 0 and variances of 1, as it was made with."""
    return any(not _initial(*(graph.tensor(name) for name in statistics(graph, norm))) for norm in running_norms(graph))


def _initial(mean: Tensor, variance: Tensor) -> bool:
    """Return whether statistics are those that a batch norm is made with, or have no values."""
    return mean.is_meta or bool((mean == 0).all() and (variance == 1).all())


def _synthesize_batch(graph: Graph, norms: Sequence[OpRecord], batch_size: int, steps: int, generator: torch.Generator) -> Any:
    """Return one batch whose statistics match those of the batch norms."""
    example = traced_batch(graph)
    size = next((len(t) for t in tensors_within(example) if t.dim()), 0)
    optimized: list[Tensor] = []

    def start(tensor: Tensor) -> Tensor:
        repeated = tensor.dim() > 0 and len(tensor) == size
        shape = (batch_size, *tensor.shape[1:]) if repeated else tensor.shape
        if not tensor.is_floating_point() or not repeated:
            return tensor.repeat(-(-batch_size // size), *(1,) * (tensor.dim() - 1))[:batch_size] if repeated else tensor
        mean, deviation = _scale(tensor)
        noise = torch.randn(shape, generator=generator).to(tensor)
        optimized.append((noise * deviation + mean).requires_grad_())
        return optimized[-1]

    with torch.enable_grad():
        batch = with_tensors(example, start)
        if not optimized:
            raise PlanError("inputs cannot be synthesized: the example inputs hold no floating-point tensor; give real data")
        _match(graph, norms, batch, optimized, steps)
    return with_tensors(batch, lambda t: t.detach())


def _match(graph: Graph, norms: Sequence[OpRecord], batch: Any, optimized: list[Tensor], steps: int) -> None:
    """Optimize the tensors in `optimized`, which `batch` holds, in place."""
    groups = [{"params": [x], "lr": _RATE * float(x.detach().std(correction=0))} for x in optimized]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    distances: list[Tensor] = []
    data = Data([batch])

    def read(op: OpRecord, tensors: Sequence[Tensor]) -> None:
        mean, variance = (graph.tensor(name) for name in statistics(graph, op))
        distances.append(_distance(tensors[0], mean, variance + op.detail[7]))

    with tapped(graph, [Tap(op.index, read) for op in norms]):
        for _ in range(steps):
            distances.clear()
            data.run(graph, batch)
            optimizer.zero_grad()
            torch.stack(distances).sum().backward()
            optimizer.step()
            schedule.step()


def _distance(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return how far the statistics of x [N, C, ...] are from a mean [C] and a variance [C], averaged over channels."""
    values = x.transpose(0, 1).flatten(1)
    shift = (values.mean(1) - mean).square() / variance
    spread = (values.var(1, correction=0) + 1e-12 * variance).log() - variance.log()
    return (shift + _SPREAD * spread.square()).mean()


def _scale(tensor: Tensor) -> tuple[float, float]:
    """Return the mean and the standard deviation of example inputs; a deviation of 1 where they do not vary."""
    deviation = float(tensor.detach().std(correction=0))
    return float(tensor.detach().mean()), deviation if deviation > 0 else 1.0
