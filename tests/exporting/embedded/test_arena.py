"""The arena planner: what lives at once lies apart, but where rows are written behind those that are read."""

from functools import cache

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bough.exporting.embedded.arena import lifetimes, plan_arena
from bough.exporting.embedded.export import export_embedded
from bough.exporting.embedded.overlap import overlaps
from bough.exporting.embedded.program import Conv, Quantization, Range, Requantization, Tensor, Window
from bough.exporting.embedded.scratch import place_scratch
from tests.exporting.embedded.nets import Residual


@cache
def _program():
    net = Residual(11, 23).eval()
    return export_embedded(net, ((torch.randn(1, 3, 8, 8),), {}), None, data=[torch.randn(2, 3, 8, 8)]).program


def test_tensors_that_live_at_once_lie_apart_or_are_an_input_and_output_that_may_overlap():
    program = _program()
    arena, blocks = plan_arena(program), lifetimes(program)
    allowed = {(id(op.inputs[i]), id(op.output)) for op in program.ops for i in overlaps(op)}
    keys = list(blocks)
    for i, a in enumerate(keys):
        assert 0 <= arena.offsets[a] <= arena.size - blocks[a].size
        for b in keys[i + 1 :]:
            together = blocks[a].first <= blocks[b].last and blocks[b].first <= blocks[a].last
            apart = (
                arena.offsets[a] + blocks[a].size <= arena.offsets[b] or arena.offsets[b] + blocks[b].size <= arena.offsets[a]
            )
            assert apart or not together or (a, b) in allowed or (b, a) in allowed


def test_plans_are_the_same_at_every_call():
    program = _program()
    assert plan_arena(program) == plan_arena(program)


def test_scratch_lies_apart_from_what_is_in_use():
    program = _program()
    arena, blocks = plan_arena(program), lifetimes(program)
    for vector in (False, True):
        scratch = place_scratch(program, arena, vector=vector)
        assert scratch.places
        for i, (start, size) in scratch.places.items():
            assert start + size <= scratch.arena
            for key, block in blocks.items():
                if block.first <= i <= block.last:
                    assert arena.offsets[key] + block.size <= start or start + size <= arena.offsets[key]


@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2),
    st.integers(1, 2),
)  # fmt: skip
def test_no_row_is_written_over_one_that_is_read_later(height, channels, results, kernel, stride, padding, dilation):
    reach = (kernel - 1) * dilation + 1
    rows = (height + 2 * padding - reach) // stride + 1
    if rows < 1:
        return
    width = 3
    source = Tensor("x", height * width * channels, Quantization(1.0, 0))
    target = Tensor("y", rows * width * results, Quantization(1.0, 0))
    op = Conv(
        "", (source,), target, (1, height, width, channels), (1, rows, width, results),
        Window((kernel, 1), (stride, 1), (padding, 0), (dilation, 1)), np.zeros((results, kernel, 1, channels), np.int8),
        np.zeros(results, np.int32),
        Requantization(np.zeros(results, np.int32), np.zeros(results, np.int32)), Range(0, -128, 127),
    )  # fmt: skip
    found = overlaps(op).get(0)
    if found is None:
        return
    for distance, order in ((-found.forward, range(rows)), (found.backward, range(rows - 1, -1, -1))):
        written = np.zeros(source.size, dtype=bool)  # of the input's bytes
        for y in order:
            top = y * stride - padding
            first, last = max(top, 0), min(top + reach, height)
            assert not written[first * width * channels : last * width * channels].any()
            start = distance + y * width * results
            inside = range(max(start, 0), min(start + width * results, source.size))
            read = range(first * width * channels, last * width * channels)
            assert not set(inside) & set(read)  # a kernel may write a row in any order
            written[list(inside)] = True
