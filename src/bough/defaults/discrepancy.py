"""How far a cut model's outputs are from the dense model's, as one number for any kind of output."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bough.calibration import Data, preserve_state
from bough.graph import Graph
from bough.tracing.capture.tree import tensors_within

_UNSEEN = 1e-3  # of the squared error is added to the divergence, which saturates where outputs are large


def outputs_on(graph: Graph, model: nn.Module, data: Data) -> list[list[Tensor]]:
    """Return the floating-point outputs of a model in eval mode for each batch."""
    with torch.no_grad(), preserve_state(model, graph.written):
        return [[t.detach() for t in tensors_within(data.run(graph, b, model)) if t.is_floating_point()] for b in data.batches]


def discrepancy(expected: list[list[Tensor]], actual: list[list[Tensor]]) -> float:
    """Return how far outputs [batch][tensor] are from those expected; 0 if they are equal.

    Of each tensor, the geometric mean of the squared error, as a share of the tensor's variance, and of the Kullback-Leibler
    divergence of softmaxes over the last dim (dim 1 of maps [N, C, ...] with four dims or more). What a tensor means is not
    known: the divergence ranks logits as accuracy and perplexity do, which squared errors do not; the squared error says
    what a softmax does not see. The mean over tensors counts, those excepted that have other shapes in the cut model, such as
    caches; infinity where an output is not finite.
    """
    pairs = [(y, z) for batch in zip(expected, actual, strict=True) for y, z in zip(*batch, strict=False)]
    values = [float(_distance(y, z)) for y, z in pairs if y.shape == z.shape and y.numel()]
    total = sum(values) / max(len(values), 1)
    return total if total == total else float("inf")


def _distance(expected: Tensor, actual: Tensor) -> Tensor:
    y, z = expected.double(), actual.double()
    error = (y - z).square().sum() / _variation(y)
    dim = 1 if y.dim() > 3 else -1
    if not y.dim() or y.shape[dim] < 2:
        return error
    p, q = F.log_softmax(y, dim), F.log_softmax(z, dim)
    terms = torch.where(p == -torch.inf, 0.0, p.exp() * (p - q))  # classes that are masked count nothing
    divergence = terms.sum(dim).mean().clamp_min(0)
    return (error * (divergence + _UNSEEN * error)).sqrt()


def _variation(y: Tensor) -> Tensor:
    """Return the sum of squares about the mean over samples; of the values themselves where they do not vary."""
    about_mean = (y - y.mean(0, keepdim=True)).square().sum() if y.dim() else torch.zeros(())
    whole = y.square().sum()
    return torch.where(about_mean > 1e-12 * whole, about_mean, whole).clamp_min(torch.finfo(torch.float64).tiny)
