"""Tensors as bytes and as memory."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor


def memory(tensor: Tensor) -> tuple[Hashable, ...]:
    """Equal for tensors that are the same memory read in the same way: two parameters may be tied so, too."""
    if tensor.layout != torch.strided or not tensor.numel():
        return (id(tensor),)
    place = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return tensor.dtype, *place, tuple(tensor.shape), tensor.stride()


def raw_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a strided tensor as a uint8 tensor [bytes], row-major; a view where the tensor is contiguous."""
    return tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
