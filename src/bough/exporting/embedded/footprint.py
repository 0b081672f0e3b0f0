"""The memory that an export to C will need, predicted without data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bough.exporting.embedded.c_source import source
from bough.exporting.embedded.lowered import lowered
from bough.exporting.embedded.observing import Inputs
from bough.exporting.embedded.scratch import place_scratch
from bough.exporting.embedded.shifts import ignore_scales
from bough.measuring import eval_mode
from bough.tracing.capture.randomness import unchanged_rng


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of an export to C.

    Attributes:
        arena: of the static arena, exact: it depends on shapes alone.
        arena_cmsis: the same with the working memory of CMSIS-NN's kernels, on cores without vector extension.
        arena_vector: the same on cores with it.
        flash: of constants; 4 bytes more for each channel of layers whose scales, at the export, are far from those of others.
    """

    arena: int
    arena_cmsis: int
    arena_vector: int
    flash: int


def footprint(model: nn.Module, inputs: Inputs) -> Footprint:
    """Return the bytes that `export(..., target="cortex-m")` of a model will need, without data and without writing anything.

    The model is lowered and its arena planned as for the export; scales are those of the example inputs, which decide no size.

    Args:
        model: a float model, or one that PT2E has quantized; it stays as it is.
        inputs: positional and keyword example inputs; their shapes, batch included, are those of the C function.

    Raises:
        ExportError: an operator that has no integer kernel, named with module and line.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> footprint(net, ((torch.randn(1, 1, 8, 8),), {})).arena
        144
    """
    args, kwargs = inputs
    sample: Tensor | tuple[Tensor, ...] | dict[str, Tensor] = args[0] if len(args) == 1 and not kwargs else args
    with eval_mode(model), unchanged_rng(), torch.no_grad():
        made = lowered(model, inputs, [sample if not kwargs else (*args, *kwargs.values())])
    ignore_scales(made.program)
    _, writer = source(made.program, made.arena)
    cmsis, vector = (place_scratch(made.program, made.arena, vector=v).arena for v in (False, True))
    return Footprint(made.arena.size, cmsis, vector, writer.constants.bytes)
