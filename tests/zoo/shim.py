"""Lets torchvision be imported without its compiled ops, which have no build for every platform."""

import torch

_LIBRARY = None
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
)


def declare_torchvision_ops() -> None:
    """Declares what `import torchvision` asks for, unless its own ops load here: declaring those twice is an error."""
    global _LIBRARY
    if _LIBRARY is not None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _LIBRARY = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            _LIBRARY.define(schema)
