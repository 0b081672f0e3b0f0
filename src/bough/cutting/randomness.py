"""Where a model computes something else from the same input: random numbers that `forward` draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from bough.torch_internals import TorchDispatchMode
from bough.tracing.capture.location import here
from bough.tracing.capture.tree import tensors_within

_UNINITIALIZED = ("empty", "new_empty")  # their values are what memory held before


@dataclass(frozen=True, slots=True)
class _Line:
    """One op of a run: its name, whether it draws random numbers, module and source line, and checksums of its results."""

    op: str
    draws: bool
    module: str
    where: str
    checksums: tuple[int, ...]


class _Journal(TorchDispatchMode):
    """Writes down every op of a run."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {id(m): name for name, m in model.named_modules()}
        self.lines: list[_Line] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(getattr(func, "_schema", func).name).removeprefix("aten::")
        if name.startswith(_UNINITIALIZED):
            return result
        module, file, line = here()
        draws = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        place = self.names.get(id(module), "")
        checksums = tuple(_checksum(t) for t in tensors_within(result) if t.layout == torch.strided)
        self.lines.append(_Line(name, draws, place, f"{file}:{line}", checksums))
        return result


def _checksum(tensor: Tensor) -> int:
    values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return crc32(values.view(torch.uint8).numpy().data)


def randomness(model: nn.Module, forward: Callable[[], object]) -> str:
    """Run a model twice on the same input, and say where the runs begin to differ.

    Args:
        model: the model whose modules are named in the answer.
        forward: runs the model, without setting any seed.

    Returns:
        One sentence with op, module and source line; "" if both runs compute the same.
    """
    runs = []
    for _ in range(2):
        with _Journal(model) as journal:
            forward()
        runs.append(journal.lines)
    first = next((a for a, b in zip(*runs, strict=False) if a != b), None)
    if first is None:
        return ""
    place = f"{first.op} in {f'module {first.module!r}' if first.module else 'the model'}, {first.where}"
    cause = "forward draws random numbers" if first.draws else "forward uses random numbers, or what an earlier run left behind"
    return f"the same input gives different outputs each time, as {cause} in eval mode, too ({place})"
