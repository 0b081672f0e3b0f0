"""torchvision's classifiers with random weights: name -> () -> (model, example inputs)."""

from collections.abc import Callable

import torch
from torch import nn

from tests.zoo.shim import declare_torchvision_ops

declare_torchvision_ops()
from torchvision import models  # noqa: E402

SIDES = {
    "resnet18": 64,
    "resnet50": 64,
    "vgg11_bn": 64,
    "densenet121": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_large": 64,
    "efficientnet_b0": 64,
    "shufflenet_v2_x1_0": 64,
    "squeezenet1_1": 64,
    "regnet_y_400mf": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "swin_t": 224,
}


def _builder(name: str, side: int) -> Callable[[], tuple[nn.Module, torch.Tensor]]:
    return lambda: (models.get_model(name, weights=None).eval(), torch.randn(2, 3, side, side))


ZOO: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {n: _builder(n, s) for n, s in SIDES.items()}
