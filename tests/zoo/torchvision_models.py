"""torchvision's models with random weights: name -> () -> (model, example inputs)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.shim import declare_torchvision_ops

Built = tuple[nn.Module, Any]


def _model(name: str, **options: Any) -> nn.Module:
    declare_torchvision_ops()
    from torchvision import models

    return models.get_model(name, weights=None, **options).eval()


def _image(name: str, side: int = 64, batch: int = 2, **options: Any) -> Callable[[], Built]:
    return lambda: (_model(name, **options), torch.randn(batch, 3, side, side))


def _video(name: str, frames: int = 8, side: int = 32, **options: Any) -> Callable[[], Built]:
    return lambda: (_model(name, **options), torch.randn(2, 3, frames, side, side))


def _detector(name: str, **options: Any) -> Callable[[], Built]:
    """A whole detector in eval mode: what it returns depends on how many boxes it finds."""
    return lambda: (_model(name, weights_backbone=None, **options), ([torch.rand(3, 64, 64)],))


class BackboneAndHead(nn.Module):
    """A detector without its post-processing: image [b, 3, h, w] -> what the head says of each level's features."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> Any:
        return self.head(list(self.backbone(x).values()))


def _heads(name: str, side: int) -> Callable[[], Built]:
    return lambda: (BackboneAndHead(_model(name, weights_backbone=None)), torch.rand(2, 3, side, side))


def mvit_v2() -> Built:
    """torchvision's second multiscale vision transformer, at 4 blocks: pooled queries, keys and values, relative positions."""
    declare_torchvision_ops()
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    blocks = [
        MSBlockConfig(heads, channels, out, [3, 3, 3], [3, 3, 3], [1, step, step], [1, pool, pool])
        for heads, channels, out, step, pool in ((1, 24, 24, 1, 4), (2, 24, 48, 2, 2), (2, 48, 48, 1, 2), (4, 48, 96, 2, 1))
    ]
    v2 = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True, "proj_after_attn": True}
    model = MViT(spatial_size=(64, 64), temporal_size=4, block_setting=blocks, num_classes=10, **v2)
    return model.eval(), torch.randn(2, 3, 4, 64, 64)


def raft() -> Built:
    """Optical flow between two images, two updates."""
    images = {f"image{i}": torch.rand(1, 3, 128, 128) for i in (1, 2)}
    return _model("raft_small"), {**images, "num_flow_updates": 2}


DETECTORS = ("retinanet_resnet50_fpn", "fcos_resnet50_fpn")
BY_REGION = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn")

ZOO: dict[str, Callable[[], Built]] = {
    "alexnet": _image("alexnet", 96),
    "vgg11_bn": _image("vgg11_bn"),
    "vgg16_bn": _image("vgg16_bn"),
    "resnet18": _image("resnet18"),
    "resnet34": _image("resnet34"),
    "resnet50": _image("resnet50"),
    "resnext50_32x4d": _image("resnext50_32x4d"),
    "wide_resnet50_2": _image("wide_resnet50_2"),
    "densenet121": _image("densenet121"),
    "inception_v3": _image("inception_v3", 299, init_weights=False),  # its auxiliary head needs the full size
    "googlenet": _image("googlenet", 96, init_weights=False),
    "mobilenet_v2": _image("mobilenet_v2"),
    "mobilenet_v3_small": _image("mobilenet_v3_small"),
    "mobilenet_v3_large": _image("mobilenet_v3_large"),
    "mnasnet0_5": _image("mnasnet0_5"),
    "squeezenet1_1": _image("squeezenet1_1"),
    "shufflenet_v2_x1_0": _image("shufflenet_v2_x1_0"),
    "efficientnet_b0": _image("efficientnet_b0"),
    "efficientnet_v2_s": _image("efficientnet_v2_s"),
    "regnet_y_400mf": _image("regnet_y_400mf"),
    "convnext_tiny": _image("convnext_tiny"),
    "vit_b_16": _image("vit_b_16", 64, image_size=64),
    "swin_t": _image("swin_t", 112),  # the smallest that shifts windows
    "swin_v2_t": _image("swin_v2_t", 128),
    "maxvit_t": _image("maxvit_t", 224, 1),
    "fcn_resnet50": _image("fcn_resnet50", weights_backbone=None, aux_loss=True),
    "deeplabv3_resnet50": _image("deeplabv3_resnet50", weights_backbone=None),
    "lraspp_mobilenet_v3_large": _image("lraspp_mobilenet_v3_large", weights_backbone=None),
    "r3d_18": _video("r3d_18"),
    "mc3_18": _video("mc3_18"),
    "r2plus1d_18": _video("r2plus1d_18"),
    "s3d": _video("s3d", 16, 224),
    "swin3d_t": _video("swin3d_t", 8, 64),
    "mvit_v2": mvit_v2,
    "raft_small": raft,
    **{name: _detector(name, min_size=64, max_size=64) for name in DETECTORS},
    **{name: _detector(name, min_size=64, max_size=64, box_score_thresh=0.0) for name in BY_REGION},  # finds something
    "ssd300_vgg16": _detector("ssd300_vgg16"),
    "retinanet_resnet50_fpn_heads": _heads("retinanet_resnet50_fpn", 64),
    "ssd300_vgg16_heads": _heads("ssd300_vgg16", 300),
}
