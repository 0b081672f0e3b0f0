"""Storage formats of sparse weights: encode a tensor as a few small tensors, and decode them bit for bit.

| format  | stored for a weight [rows, columns] with k non-zeros                    |
|---------|-------------------------------------------------------------------------|
| dense   | all elements                                                            |
| coo     | rows, columns and values of the non-zeros                               |
| csr     | columns and values of the non-zeros, and where each row begins          |
| bitmask | values of the non-zeros, and one bit per element                        |
| block   | 4 x 4 blocks that are not all zero, their columns, where each row begins |

Indices have the smallest of int16 and int32 that holds them. Rows are dim 0, columns all other dims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bough.errors import PlanError

BLOCK = 4

Encoded = dict[str, Tensor]
"""{part: tensor}; the shape of the weight is stored beside."""


@dataclass(frozen=True, slots=True)
class Format:
    """How to encode and decode one tensor."""

    encode: Callable[[Tensor], Encoded]
    decode: Callable[[Mapping[str, Tensor], tuple[int, ...], torch.dtype], Tensor]


def format_named(name: str) -> Format:
    """Return a format by its name.

    Raises:
        PlanError: there is none of this name.
    """
    if name not in FORMATS:
        raise PlanError(f"format={name!r} is unknown: use one of {', '.join(map(repr, FORMATS))}")
    return FORMATS[name]


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0] if tensor.dim() else 1, -1)


def _nonzero(tensor: Tensor) -> Tensor:
    """Return where elements are not stored as zero bits: [rows, columns]; negative zero and NaN are stored."""
    signed = _rows(tensor)
    if signed.is_floating_point():
        return (signed != 0) | signed.signbit()
    return signed != 0


def _index(values: Tensor, below: int) -> Tensor:
    return values.to(torch.int16 if below <= 2**15 else torch.int32)


def _starts(counts: Tensor) -> Tensor:
    """Return where each row begins, int32 [rows + 1], from the number of entries of each row."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32)


def _row_numbers(starts: Tensor) -> Tensor:
    counts = starts.long().diff()
    return torch.arange(len(counts)).repeat_interleave(counts)


def _encode_coo(tensor: Tensor) -> Encoded:
    rows, (at, columns) = _rows(tensor), _nonzero(tensor).nonzero(as_tuple=True)
    return {
        "rows": _index(at, rows.shape[0]), "columns": _index(columns, rows.shape[1]), "values": rows[at, columns],
    }  # fmt: skip


def _decode_coo(parts: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    rows = _rows(torch.zeros(shape, dtype=dtype))
    rows[parts["rows"].long(), parts["columns"].long()] = parts["values"]
    return rows.view(shape)


def _encode_csr(tensor: Tensor) -> Encoded:
    rows, nonzero = _rows(tensor), _nonzero(tensor)
    at, columns = nonzero.nonzero(as_tuple=True)
    return {"starts": _starts(nonzero.sum(1)), "columns": _index(columns, rows.shape[1]), "values": rows[at, columns]}


def _decode_csr(parts: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return _decode_coo({**parts, "rows": _row_numbers(parts["starts"])}, shape, dtype)


def _encode_bitmask(tensor: Tensor) -> Encoded:
    nonzero = _nonzero(tensor)
    return {"bits": torch.from_numpy(np.packbits(nonzero.numpy())), "values": _rows(tensor)[nonzero]}


def _decode_bitmask(parts: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    rows = _rows(torch.zeros(shape, dtype=dtype))
    bits = np.unpackbits(parts["bits"].numpy(), count=rows.numel())
    rows[torch.from_numpy(bits).bool().view(rows.shape)] = parts["values"]
    return rows.view(shape)


def _encode_block(tensor: Tensor) -> Encoded:
    rows = _rows(tensor)
    down, right = (-n % BLOCK for n in rows.shape)
    padded = torch.nn.functional.pad(rows, (0, right, 0, down))
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK).transpose(1, 2)
    stored = torch.nn.functional.pad(_nonzero(tensor), (0, right, 0, down))
    there = stored.view(stored.shape[0] // BLOCK, BLOCK, -1, BLOCK).transpose(1, 2).flatten(2).any(2)
    _, columns = there.nonzero(as_tuple=True)
    return {"starts": _starts(there.sum(1)), "columns": _index(columns, there.shape[1]), "values": blocks[there].contiguous()}


def _decode_block(parts: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    height, width = _rows(torch.zeros(shape, dtype=torch.bool)).shape
    blocks = torch.zeros(-(-height // BLOCK), -(-width // BLOCK), BLOCK, BLOCK, dtype=dtype)
    blocks[_row_numbers(parts["starts"]), parts["columns"].long()] = parts["values"]
    padded = blocks.transpose(1, 2).reshape(blocks.shape[0] * BLOCK, -1)
    return padded[:height, :width].reshape(shape).clone()


FORMATS: dict[str, Format] = {
    "dense": Format(lambda t: {"values": t.contiguous()}, lambda parts, shape, dtype: parts["values"].clone()),
    "coo": Format(_encode_coo, _decode_coo),
    "csr": Format(_encode_csr, _decode_csr),
    "bitmask": Format(_encode_bitmask, _decode_bitmask),
    "block": Format(_encode_block, _decode_block),
}
