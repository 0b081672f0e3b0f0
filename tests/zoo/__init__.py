"""Models to prune: `small` (hand-written nets, one difficulty each) and `library` (torchvision, timm, transformers)."""

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
