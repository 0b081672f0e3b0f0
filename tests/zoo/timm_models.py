"""timm's classifiers with random weights: name -> () -> (model, example inputs)."""

from collections.abc import Callable

import torch
from torch import nn

from tests.zoo.shim import declare_torchvision_ops

declare_torchvision_ops()
import timm  # noqa: E402

SIDES = {
    "vit_tiny_patch16_224": 224,
    "deit3_small_patch16_224": 224,
    "mixer_s32_224": 224,
    "ghostnet_100": 64,
    "hrnet_w18_small": 64,
    "res2net50_26w_4s": 64,
    "cspresnet50": 64,
}


def _builder(name: str, side: int) -> Callable[[], tuple[nn.Module, torch.Tensor]]:
    return lambda: (timm.create_model(name, pretrained=False).eval(), torch.randn(2, 3, side, side))


ZOO: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {n: _builder(n, s) for n, s in SIDES.items()}
