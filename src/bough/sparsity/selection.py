"""Masks from scores: the highest of a weight, of each of its outputs, or of each group of an N:M pattern."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_highest(scores: Tensor, count: int, *, per_output: bool = False) -> Tensor:
    """Return the mask of the `count` highest scores, bool [blocks, inputs, outputs]; of equal scores the first ones stay.

    Args:
        scores: [blocks, inputs, outputs].
        count: number of elements that stay, exactly.
        per_output: compare the inputs of each output alone, so that all outputs keep equally many, or one more.
    """
    if not per_output:
        kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        kept[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
        return kept.view(scores.shape)
    blocks, _, outputs = scores.shape
    each, more = divmod(count, blocks * outputs)
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    kept.scatter_(1, order[:, :each], True)
    if more:
        following = order[:, each : each + 1]
        chosen = scores.gather(1, following).flatten().argsort(descending=True, stable=True)[:more]
        also = torch.zeros(blocks * outputs, dtype=torch.bool, device=scores.device)
        also[chosen] = True
        kept.scatter_(1, following, also.view(blocks, 1, outputs))
    return kept
