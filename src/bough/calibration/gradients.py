"""Gradients of a loss with respect to parameters, for a batch and for each of its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from bough.calibration.batches import batch_size, split_samples
from bough.errors import PlanError
from bough.graph import Graph

ModelLoss = Callable[[nn.Module, object], object]
"""(model, batch) -> mean loss over the batch, a tensor with one element."""


def loss_gradients(graph: Graph, loss: ModelLoss, batch: object, names: Sequence[str]) -> list[Tensor]:
    """Return the gradient of the loss on a batch with respect to each parameter in `names`.

    Gradients have at least float32 precision, and are zero for parameters that the loss does not depend on. `.grad` of the
    parameters stays as it is.

    Raises:
        PlanError: the loss is not a tensor with one element, or does not depend on the model.
    """
    parameters = [graph.tensor(n) for n in names]
    if not parameters:
        return []
    with torch.enable_grad():
        for p in parameters:
            p.requires_grad_(True)
        value = loss(graph.model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise PlanError(f"loss(model, batch) must return a tensor of one element, and returned {what}")
        if not value.requires_grad:
            raise PlanError("loss(model, batch) does not depend on the model's parameters: does it run under no_grad?")
        gradients = torch.autograd.grad(value.reshape(()), parameters, allow_unused=True)
    dense = (torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, gradients, strict=True))
    return [g.to(torch.promote_types(g.dtype, torch.float32)) for g in dense]


def sample_gradients(graph: Graph, loss: ModelLoss, batch: object, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Yield `loss_gradients` for each sample of a batch alone; one forward and backward pass per sample.

    Raises:
        PlanError: the batch cannot be split into samples.
    """
    is_single = batch_size(batch) == 1
    for sample in [batch] if is_single else split_samples(batch):
        try:
            gradients = loss_gradients(graph, loss, sample, names)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if is_single or isinstance(error, PlanError):
                raise
            raise PlanError(
                f"the loss can not be taken of one sample of a batch ({type(error).__name__}: {error}): what a batch holds "
                "besides tensors and containers of them, with samples first, can not be split; give batches of one sample"
            ) from error
        yield gradients
