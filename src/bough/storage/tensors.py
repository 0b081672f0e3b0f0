"""Tensors as bytes and as memory."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size: numpy knows no bfloat16


def memory(tensor: Tensor) -> tuple[Hashable, ...]:
    """Equal for tensors that are the same memory read in the same way: two parameters may be tied so, too."""
    if tensor.layout != torch.strided or not tensor.numel():
        return (id(tensor),)
    place = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return tensor.dtype, *place, tuple(tensor.shape), tensor.stride()


def raw_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a strided tensor as a uint8 tensor [bytes], row-major; a view where the tensor is contiguous."""
    return tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def taken(tensor: Tensor, dim: int, units: NDArray[np.int64]) -> Tensor:
    """Return the slices of a tensor of the CPU at the indices `units` along `dim`, contiguous.

    torch's `index_select` takes several times as long along the last dim of bfloat16.
    """
    raw = tensor.detach().contiguous().view(_INTEGERS[tensor.itemsize]).numpy()
    return torch.from_numpy(np.take(raw, units, axis=dim)).view(tensor.dtype)
