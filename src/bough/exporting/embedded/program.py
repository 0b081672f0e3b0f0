"""The integer program: int8 tensors in memory order and the typed ops between them, as the C code will run them.

Spatial tensors are [N, H, W, C] in memory; sequences are [N, 1, L, C]. Every number that a kernel needs is in its op, so the
numpy reference, the arena planner and the C emitter read the same list.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]
Dims = tuple[int, int, int, int]
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Quantization:
    """real value = scale * (stored value - zero_point)."""

    scale: float
    zero_point: int


@dataclass(eq=False, slots=True)
class Tensor:
    """An int8 buffer; `constant` holds the values of one that never changes."""

    name: str
    size: int
    quantization: Quantization
    constant: Int8 | None = None


@dataclass(frozen=True, slots=True)
class Requantization:
    """Fixed-point factors per output channel: result = value * multiplier * 2**(shift - 31), rounded."""

    multiplier: Int32
    shift: Int32


@dataclass(frozen=True, slots=True)
class Range:
    """Offset that is added to an accumulator after scaling, and the bounds that the result is clamped to."""

    offset: int
    low: int
    high: int


@dataclass(eq=False, slots=True)
class Op:
    """Base of ops. `source`: the module and operator that the op comes from, for comments and messages."""

    source: str
    inputs: tuple[Tensor, ...]
    output: Tensor


@dataclass(eq=False, slots=True)
class Window:
    """Sizes and steps (height, width) of a sliding window; `padding` is at the top and left."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair = (1, 1)


@dataclass(eq=False, slots=True)
class Conv(Op):
    """Convolution, [out, kh, kw, in / groups] weights; depthwise ones are [1, kh, kw, out]."""

    in_dims: Dims
    out_dims: Dims
    window: Window
    weight: Int8
    bias: Int32
    factors: Requantization
    range: Range
    depthwise: bool = False


@dataclass(eq=False, slots=True)
class FullyConnected(Op):
    """Linear layer on `rows` vectors, [out, in] weights."""

    rows: int
    weight: Int8
    bias: Int32
    factors: Requantization
    range: Range


@dataclass(eq=False, slots=True)
class Add(Op):
    """Sum of two tensors, the second repeated `repeats` times; `factors` are those of input 1, input 2 and the result."""

    repeats: int
    factors: Requantization
    range: Range
    left_shift: int = 20


@dataclass(eq=False, slots=True)
class Mul(Op):
    """Product of two tensors, the second repeated `repeats` times."""

    repeats: int
    factors: Requantization
    range: Range


@dataclass(eq=False, slots=True)
class Pool(Op):
    """Maximum or average over windows; an average counts only elements inside the input."""

    in_dims: Dims
    out_dims: Dims
    window: Window
    maximum: bool
    range: Range


@dataclass(eq=False, slots=True)
class Mean(Op):
    """Mean over the middle axis of [outer, count, inner], requantized from the exact sum."""

    outer: int
    count: int
    inner: int
    factors: Requantization
    range: Range


@dataclass(eq=False, slots=True)
class Lookup(Op):
    """Any function of one value: `table[value + 128]`."""

    table: Int8


@dataclass(eq=False, slots=True)
class Copy(Op):
    """output[start_out + sum(i * out_strides)] = input[start_in + sum(i * in_strides)] over `dims` of at most six axes."""

    dims: tuple[int, ...]
    start_in: int
    in_strides: tuple[int, ...]
    start_out: int
    out_strides: tuple[int, ...]


@dataclass(eq=False, slots=True)
class Fill(Op):
    """Set every element to one value."""

    value: int


@dataclass(eq=False, slots=True)
class Softmax(Op):
    """Softmax of each row; `table[d]` is exp(-d * scale) as an integer. The result has scale 1/256 and zero point -128."""

    rows: int
    columns: int
    table: Int32


@dataclass(eq=False, slots=True)
class Resize(Op):
    """Linear interpolation over height and width: per output row and column the lower index, the upper one, and the weight
    of the upper one in 1/2048."""

    in_dims: Dims
    out_dims: Dims
    rows: NDArray[np.int16]
    columns: NDArray[np.int16]


@dataclass(eq=False, slots=True)
class MatMul(Op):
    """Products of two activations: [rows, depth] x [depth, columns] for each of two batch dims.

    `left_strides` are those of (batch, batch, row, depth), `right_strides` those of (batch, batch, column, depth). The result
    is [batch, batch, rows, columns] in memory.
    """

    batches: Pair
    rows: int
    columns: int
    depth: int
    left_strides: Dims
    right_strides: Dims
    factors: Requantization
    range: Range


@dataclass(eq=False, slots=True)
class LayerNorm(Op):
    """Normalization of each row, then 16-bit `weight` and `bias`; `epsilon` is in units of columns^2 * scale^2."""

    rows: int
    columns: int
    epsilon: int
    weight: NDArray[np.int16]
    bias: Int32
    factors: Requantization
    range: Range


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the program: its tensor, its logical shape, and how it lies in memory.

    Attributes:
        shape: logical shape, as in PyTorch.
        order: logical dimension at each position in memory, so (0, 2, 3, 1) is channels last.
    """

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(slots=True)
class Program:
    """Ops in the order in which they run.

    Attributes:
        shifts: an array whose beginnings are the shifts of most layers; see `share_shifts`.
    """

    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    shifts: Int32 = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def activations(self) -> list[Tensor]:
        """Tensors that need room in the arena: neither constant, nor an input or output of the program."""
        outside = {id(port.tensor) for port in (*self.inputs, *self.outputs)}
        found = {id(op.output): op.output for op in self.ops if id(op.output) not in outside}
        return list(found.values())
