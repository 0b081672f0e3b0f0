"""Lets torchvision be imported and run without its compiled ops, which have no build for every platform."""

import importlib
import sys

import torch

_LIBRARY = None
ROI = "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, int sampling_ratio, bool aligned)"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align{ROI} -> Tensor",
    "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, int stride_h, int stride_w, "
    "int pad_h, int pad_w, int dilation_h, int dilation_w, int groups, int offset_groups, bool use_mask) -> Tensor",
)


def declare_torchvision_ops() -> None:
    """Declares what `import torchvision` asks for, unless its own ops load here: declaring those twice is an error."""
    global _LIBRARY
    if _LIBRARY is not None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        from tests.zoo import vision_ops

        _LIBRARY = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            _LIBRARY.define(schema)
        _LIBRARY.impl("nms", vision_ops.nms, "CPU")
        _LIBRARY.impl("roi_align", vision_ops.roi_align, "CPU")
        _LIBRARY.impl("roi_align", vision_ops.roi_align_shape, "Meta")
        _LIBRARY.impl("deform_conv2d", vision_ops.deform_conv2d, "CompositeExplicitAutograd")
        importlib.import_module("torchvision")
        for module in ("torchvision.extension", "torchvision.ops.roi_align"):
            sys.modules[module]._has_ops = lambda: True
