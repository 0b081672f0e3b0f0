"""Whole layers by the loss without them, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from bough.calibration import Data, Loss, batch_size, gather_objects, preserve_state, require_reiterable
from bough.errors import PlanError
from bough.graph import Graph, Layer
from bough.importance.layer_lists import layer_lists
from bough.importance.loss_criterion import LossCriterion
from bough.importance.protocols import UnitScores
from bough.tracing.typing.layers import bypassed


@dataclass(frozen=True, slots=True)
class LayerLoss(LossCriterion):
    """Loss once a layer and all before it in the order of removal are left out: greedy removal by the loss.

    At each step, the layer of a list without which the loss is lowest is left out; with a language model's loss, this is
    removal by perplexity. A score is the highest loss up to the layer's removal, so that scores rise in the order of removal.
    For a list of n layers, the data is passed through n (n + 1) / 2 times. `plan(keep={list: n})` reads the scores.

    Source: Song et al., 2024 (SLEB).

    Attributes:
        loss: mean over a batch.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: from its call: no layer can be left out, the data can be gone through only once, or the loss is no number.

    Example:
        >>> import torch, bough
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        ...     def forward(self, x):
        ...         return x + self.down(torch.relu(self.up(x)))
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(*(Block() for _ in range(3))))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> bough.score(graph, LayerLoss(lambda model, batch: model(batch).square().mean()), [torch.randn(16, 4)])["1"].shape
        (3,)
    """

    scores_layers: ClassVar[bool] = True

    def __call__(self, graph: Graph, data: Data) -> UnitScores:
        """Return the scores of each list of layers, [entries that can be left out], and of layers outside of lists, [1]."""
        lists = layer_lists(graph)
        require_reiterable(data)
        loss = data.loss(graph, self.loss)
        with torch.no_grad(), preserve_state(graph.model, graph.written):
            return {name: _greedy(layers, lambda gone: _mean_loss(graph, loss, data, gone)) for name, layers in lists.items()}


def _greedy(layers: Sequence[Layer], loss_without: Callable[[Sequence[Layer]], float]) -> np.ndarray:
    """Return the highest loss up to the removal of each layer, removed greedily."""
    scores, gone = np.zeros(len(layers)), list[Layer]()
    highest = -np.inf
    while len(gone) < len(layers):
        losses = {i: loss_without([*gone, x]) for i, x in enumerate(layers) if x not in gone}
        best = min(losses, key=losses.__getitem__)
        highest = max(highest, losses[best])
        scores[best] = highest
        gone.append(layers[best])
    return scores


def _mean_loss(graph: Graph, loss: Loss, data: Data, gone: Sequence[Layer]) -> float:
    """Return the mean of the loss over all samples, without some layers."""
    total, samples = 0.0, 0
    with ExitStack() as stack:
        for layer in gone:
            stack.enter_context(bypassed(graph.model.get_submodule(layer.name)))
        for batch in data.batches:
            value = loss(graph.model, batch)
            if not isinstance(value, (int, float)) and not (isinstance(value, torch.Tensor) and value.numel() == 1):
                raise PlanError("the loss is no single number: give (model, batch) -> the mean loss, one number")
            total, samples = total + float(value) * batch_size(batch), samples + batch_size(batch)
    if data.distributed:
        shares = gather_objects((total, samples))
        total, samples = sum(share[0] for share in shares), sum(share[1] for share in shares)
    if not samples:
        raise PlanError("the data gives no batches")
    if not np.isfinite(total):
        raise PlanError("LayerLoss is not finite: the model or the loss gives NaN or infinity on this data")
    return total / samples
