"""Bytes of the state dict and of activations at another precision than the model is in."""

from __future__ import annotations

from dataclasses import dataclass

from bough.errors import BudgetError
from bough.graph import Graph, Polynomials, Storage, total
from bough.spaces import Space


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes: of an element of a weight, of what each of its output channels needs besides (its scale), and of an element
    of all other floating tensors (biases, norms, statistics). Integer tensors stay as they are."""

    weight: float
    channel: float
    other: float

    @property
    def activation(self) -> float:
        """Bytes of a floating-point number among the activations: as of a weight, and one at least."""
        return max(self.weight, 1.0)

    def element(self, storage: Storage) -> float:
        """Bytes of an element of an activation; integers (indices, masks) stay as they are."""
        return self.activation * storage.floats if storage.floats else float(storage.itemsize)


PRECISIONS = {
    "float32": Precision(4, 0, 4), "float16": Precision(2, 0, 2), "bfloat16": Precision(2, 0, 2),
    "int8": Precision(1, 4, 4), "int4": Precision(0.5, 4, 4),
}  # fmt: skip


def precision(name: str) -> Precision:
    """The precision called `name`; BudgetError where there is none."""
    if name not in PRECISIONS:
        raise BudgetError(f"precision={name!r} is unknown: use one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def stored(graph: Graph, name: str) -> Polynomials:
    """Bytes of the state dict at a precision: weights (two axes or more) quantized per output channel (axis 0)."""
    p = precision(name)
    terms: list[tuple[float, tuple[Space, ...]]] = []
    for state in graph.states.values():
        if not state.saved:
            continue
        if not graph.tensor(state.name).is_floating_point():
            terms.append((float(state.itemsize), state.axes))
        elif len(state.axes) < 2:
            terms.append((p.other, state.axes))
        else:
            terms += [(p.weight, state.axes), (p.channel, state.axes[:1])]
    return total((g.atom for g in graph.groups), terms)
