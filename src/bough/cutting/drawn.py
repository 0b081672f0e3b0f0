"""Weights drawn at random, the same for the same name, and small random changes of weights."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

import torch
from torch import Tensor


def draw(name: str, tensor: Tensor) -> Tensor:
    """Draw the values of a floating or complex tensor at random, in place, none of them zero, and return the tensor.

    Matrices and kernels are normal with a variance of one over the fan-in, so that activations keep their size; vectors (gains
    and biases) are uniform between 0.5 and 1.5. The values depend on the name, the shape and the dtype alone.
    """
    if tensor.is_complex():
        draw(name, torch.view_as_real(tensor))
    elif tensor.is_floating_point():
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        if tensor.dim() > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator)).div_(max(tensor[0].numel(), 1) ** 0.5)
        else:
            tensor.copy_(torch.rand(tensor.shape, generator=generator)).add_(0.5)
    return tensor


def perturb(tensors: Iterable[Tensor], size: float, seed: int) -> None:
    """Multiply each index of each dim of some tensors, in place, by 1 + size or 1 - size, drawn at random; zeros stay zero.

    Tensors that torch has no arithmetic for (integers, sparse ones, floats of 8 bits) stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        arithmetic = tensor.layout == torch.strided and tensor.element_size() > 1
        if arithmetic and (tensor.is_floating_point() or tensor.is_complex()):
            for dim, n in enumerate(tensor.shape):
                signs = 2.0 * torch.randint(0, 2, (n,), generator=generator).to(tensor.device, tensor.real.dtype) - 1
                tensor.mul_((1 + size * signs).view(-1, *(1,) * (tensor.dim() - dim - 1)))
