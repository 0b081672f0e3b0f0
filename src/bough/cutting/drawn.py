"""Weights drawn at random, the same for the same name, and small random changes of weights."""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

import torch
from torch import Tensor


def drawn(name: str, tensor: Tensor) -> Tensor:
    """Return a parameter drawn at random in the place of `tensor`: of its shape, dtype and device, none of it zero.

    Matrices and kernels are normal with a variance of one over the fan-in, so that activations keep their size; vectors (gains
    and biases) are uniform between 0.5 and 1.5. The draw depends on the name alone.
    """
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    if tensor.dim() > 1:
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / max(tensor[0].numel(), 1) ** 0.5
    else:
        values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
    return values.to(tensor.device, tensor.dtype)


def perturb(tensors: Iterable[Tensor], size: float, seed: int) -> None:
    """Multiply each index of each dim of some tensors, in place, by 1 + size or 1 - size, drawn at random; zeros stay zero."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            for dim, n in enumerate(tensor.shape):
                signs = 2.0 * torch.randint(0, 2, (n,), generator=generator).to(tensor.device, tensor.real.dtype) - 1
                tensor.mul_((1 + size * signs).view(-1, *(1,) * (tensor.dim() - dim - 1)))
