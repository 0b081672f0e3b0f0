"""A model as an integer program with its activations placed: what an export to C writes, and what a footprint counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from bough.exporting.embedded.arena import Arena, plan_arena
from bough.exporting.embedded.folding import fold_batch_norms
from bough.exporting.embedded.lowering import lower
from bough.exporting.embedded.lowering.context import Value
from bough.exporting.embedded.observing import Inputs, complete
from bough.exporting.embedded.program import Program
from bough.exporting.embedded.reading import Reading, read
from bough.exporting.embedded.shifts import share_shifts


@dataclass(frozen=True, slots=True)
class Lowered:
    """A model as an integer program.

    Attributes:
        reading: the exported graph that the program is of.
        program: ops with integer weights.
        values: {node of the graph: what it became}.
        arena: offsets and size of the activations.
        calibrated: names of the values whose quantization parameters data decided.
    """

    reading: Reading
    program: Program
    values: dict[fx.Node, Value]
    arena: Arena
    calibrated: tuple[str, ...]


def lowered(model: nn.Module, inputs: Inputs, batches: Iterable[Any] | None) -> Lowered:
    """Return a model in eval mode as an integer program.

    Args:
        model: a float model, or one that PT2E has quantized.
        inputs: positional and keyword example inputs.
        batches: real inputs that decide the quantization parameters that the model does not have; None if it has all.

    Raises:
        ExportError: an operator that has no integer kernel, or parameters that need data.
    """
    reading = read(model, inputs)
    fold_batch_norms(reading)
    calibrated = complete(reading, inputs, batches, model)
    program, values = lower(reading)
    share_shifts(program)
    return Lowered(reading, program, values, plan_arena(program), tuple(calibrated))
