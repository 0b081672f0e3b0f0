"""Calls that are made several times in a row, each from the state that the one before left on the model.

A model that keeps state may take another path in its second call than in its first (`if self.hidden is None`), and reads there
what the first call stored. `trace` records such a call once more as a call of `InARow`, and `verify` compares it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bough.calls import Call
from bough.graph import OpRecord
from bough.ops import Reason
from bough.spaces import freeze
from bough.tracing.capture.inputs import with_tensors
from bough.tracing.capture.tree import Successive

TIMES = 3  # the third call reads what the second left, as all later ones do
_ADDRESSING = "select", "slice"


@dataclass(frozen=True, slots=True)
class InARow:
    """The method of a call that makes another call `times` times, each with copies of the containers among its inputs."""

    call: Call
    times: int = TIMES

    @property
    def __name__(self) -> str:
        return f"{self.times} times in a row {self.call.name}"

    def __call__(self, model: nn.Module, *args: Any, **kwargs: Any) -> Successive:
        method, results = self.call.bound(model), Successive()
        for _ in range(self.times):
            own, named = with_tensors((args, kwargs), lambda t: t)
            results.append(method(*own, **named))
        return results


def in_a_row(call: Call) -> Call:
    """Return the call that makes `call` several times in a row."""
    return Call.of(call.args, call.kwargs, InARow(call))


def carries_state(once: Sequence[OpRecord], repeated: Sequence[OpRecord]) -> bool:
    """Whether a later call computes otherwise than the first, or from what an earlier one computed.

    Args:
        once: the operators of a call.
        repeated: the operators of that call made `TIMES` times in a row.
    """
    if not _aligned(once, repeated):
        return True
    n = len(once)
    if any(_way(op) != _way(repeated[i % n]) for i, op in enumerate(repeated)):
        return True
    made_in = {value: i // n for i, op in enumerate(repeated) for value in op.values}
    return any(made_in.get(value, i // n) != i // n for i, op in enumerate(repeated) for value in op.inputs)


def freeze_moving_positions(once: Sequence[OpRecord], repeated: Sequence[OpRecord]) -> None:
    """Freeze axes that calls address by an integer that is another one in each call, such as the slots of a ring buffer."""
    if not _aligned(once, repeated):
        return
    n = len(once)
    for first, second in zip(repeated[:n], repeated[n : 2 * n], strict=True):
        if first.name in _ADDRESSING and _integers(first) != _integers(second):
            axis = first.arguments[0][first.detail[1] if len(first.detail) > 1 else 0]
            freeze(axis, Reason("a position on this axis changes from call to call", first.name, first.module, first.where))


def _aligned(once: Sequence[OpRecord], repeated: Sequence[OpRecord]) -> bool:
    return [op.name for op in repeated] == [op.name for op in once] * TIMES


def _way(op: OpRecord) -> tuple[Any, ...]:
    return op.where, op.module, op.states, _integers(op)


def _integers(op: OpRecord) -> list[int]:
    return [int(v) for v in op.detail if isinstance(v, int)]
