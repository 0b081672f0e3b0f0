"""Models to prune: small nets of one difficulty each, and those of torchvision, timm and transformers, with random weights.

Each module has `ZOO`: name -> () -> (model, example inputs: a tensor, a tuple of arguments or a dict of keyword arguments).
Importing a table imports no library: its builders do.
"""

from typing import Any

import torch
from torch import nn


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics in float64, so that nothing is zero, one or equal by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) / max(p[0].numel(), 1) ** 0.5)
            else:
                p.copy_(
                    torch.rand(p.shape, generator=generator) + 0.5
                    if "weight" in name
                    else torch.randn(p.shape, generator=generator) * 0.3
                )
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(torch.randn(b.shape, generator=generator) * 0.3)
            elif name.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=generator) + 0.5)
    return model.double()


def to_double(inputs: Any) -> Any:
    """The same inputs with every floating tensor in float64, for a model that `randomize` gave."""
    if isinstance(inputs, dict):
        return {name: to_double(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(map(to_double, inputs))
    return inputs.double() if torch.is_tensor(inputs) and inputs.is_floating_point() else inputs
