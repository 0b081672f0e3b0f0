"""The models on which budgets are measured, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.models import build as build_other
from tests.zoo.shim import declare_torchvision_ops

LATENCY = ("resnet50", "mobilenet_v2", "vit_s")
MODELS = (*LATENCY, "densenet121", "bert_base")


def build(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """The model in eval mode and its example inputs, batch 1."""
    torch.manual_seed(seed)
    if name == "mobilenet_v2":
        declare_torchvision_ops()
        from torchvision import models

        return models.mobilenet_v2(weights=None).eval(), torch.randn(1, 3, 224, 224)
    if name == "vit_s":
        declare_torchvision_ops()
        import timm

        return timm.create_model("vit_small_patch16_224").eval(), torch.randn(1, 3, 224, 224)
    return build_other(name, seed)
