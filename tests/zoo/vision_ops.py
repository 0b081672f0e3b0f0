"""torchvision's compiled ops in plain tensor operations: slow, for small examples on any machine."""

import torch
from torch import Tensor
from torch.nn import functional as F


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes [n, 4] that no better one overlaps by more than the threshold, best first."""
    left = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = boxes[left, :2].maximum(boxes[best, :2]), boxes[left, 2:].minimum(boxes[best, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        left = left[shared <= iou_threshold * (area[best] + area[left] - shared)]
    return torch.stack(kept) if kept else left


def _averaging(start: Tensor, extent: Tensor, bins: int, samples: int, length: int) -> Tensor:
    """[bins, length]: each bin's mean of linear interpolations at `samples` places along an axis."""
    samples = samples if samples > 0 else max(int(torch.ceil(extent / bins)), 1)
    steps = torch.arange(bins * samples, dtype=start.dtype, device=start.device) + 0.5
    places = start + steps * extent / (bins * samples)
    inside = (places >= -1) & (places <= length)
    places = places.clamp(0, length - 1)
    grid = torch.arange(length, dtype=start.dtype, device=start.device)
    weights = (1 - (places[:, None] - grid).abs()).clamp(min=0) * inside[:, None]
    return weights.view(bins, samples, length).mean(1)


def roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """[rois, channels, pooled_height, pooled_width] of input [images, channels, h, w]; rois [rois, (image, x, y, x, y)]."""
    out = []
    for roi in rois:
        x, y, to_x, to_y = roi[1:] * spatial_scale - (0.5 if aligned else 0.0)
        width, height = to_x - x, to_y - y
        if not aligned:
            width, height = width.clamp(min=1), height.clamp(min=1)
        rows = _averaging(y, height, pooled_height, sampling_ratio, input.shape[2])
        columns = _averaging(x, width, pooled_width, sampling_ratio, input.shape[3])
        out.append(rows @ input[int(roi[0])] @ columns.T)
    return torch.stack(out) if out else input.new_empty(0, input.shape[1], pooled_height, pooled_width)


def roi_align_shape(
    input: Tensor, rois: Tensor, spatial_scale: float, pooled_height: int, pooled_width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    return input.new_empty(rois.shape[0], input.shape[1], pooled_height, pooled_width)


def deform_conv2d(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, stride_h: int, stride_w: int, pad_h: int,
    pad_w: int, dilation_h: int, dilation_w: int, groups: int, offset_groups: int, use_mask: bool,
) -> Tensor:  # fmt: skip
    """A convolution whose kernel taps are moved by `offset` [batch, groups * taps * (y, x), h, w], and weighed by `mask`."""
    batch, channels, height, width = input.shape
    kernel_h, kernel_w = weight.shape[2:]
    taps, out_h, out_w = kernel_h * kernel_w, *offset.shape[2:]

    def line(size: int, stride: int, pad: int) -> Tensor:
        return torch.arange(size, dtype=input.dtype, device=input.device) * stride - pad

    rows = line(kernel_h, dilation_h, 0).repeat_interleave(kernel_w).view(-1, 1, 1) + line(out_h, stride_h, pad_h).view(-1, 1)
    columns = line(kernel_w, dilation_w, 0).repeat(kernel_h).view(-1, 1, 1) + line(out_w, stride_w, pad_w)
    moved = offset.reshape(batch * offset_groups, taps, 2, out_h, out_w)
    y, x = moved[:, :, 0] + rows, moved[:, :, 1] + columns
    grid = torch.stack((x * 2 / max(width - 1, 1) - 1, y * 2 / max(height - 1, 1) - 1), -1).flatten(1, 2)
    image = input.reshape(batch * offset_groups, channels // offset_groups, height, width)
    sampled = F.grid_sample(image, grid, align_corners=True).view(*image.shape[:2], taps, out_h, out_w)
    if use_mask:
        sampled = sampled * mask.reshape(batch * offset_groups, 1, taps, out_h, out_w)
    sampled = sampled.reshape(batch, groups, channels // groups, taps, out_h, out_w)
    kernel = weight.reshape(groups, weight.shape[0] // groups, channels // groups, taps)
    return torch.einsum("bgcthw,goct->bgohw", sampled, kernel).flatten(1, 2) + bias.view(-1, 1, 1)
