"""Numbers that a model's Python reads from tensors which depend on no input, such as whether a mask is the causal one.

`torch.export` runs the model on tensors without values and stops where Python asks for one. Where the value follows from
constants and weights alone it is the same for all inputs, so it is recorded in a run on real values and given at that place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bough.exporting.flat import FlatModel
from bough.torch_internals import TorchDispatchMode
from bough.tracing.capture.tree import tensors_within

_READERS = frozenset((Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.item))


@dataclass(frozen=True, slots=True)
class Reading:
    """A number that Python read from a tensor.

    Attributes:
        value: the number.
        constant: whether the tensor depends on no input.
    """

    value: Any
    constant: bool


@torch.no_grad()
def readings(flat: FlatModel, tensors: Sequence[Tensor]) -> list[Reading]:
    """Return the numbers that a model's Python reads from tensors in a run on these inputs, in order."""
    given = [t.clone() for t in tensors]
    dependence = _Dependence(given)
    recorder = _Recorder(dependence)
    with dependence, recorder:
        flat(*given)
    return recorder.found


class Replay(TorchFunctionMode):
    """Gives recorded numbers in place of those of tensors without values; a number that depends on inputs is left as it is."""

    def __init__(self, recorded: Sequence[Reading]) -> None:
        super().__init__()
        self._left = iter(recorded)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function in _READERS:
            reading = next(self._left, None)
            if reading is not None and reading.constant:
                return reading.value
        return function(*args, **(kwargs or {}))


class _Recorder(TorchFunctionMode):
    def __init__(self, dependence: _Dependence) -> None:
        super().__init__()
        self.found: list[Reading] = []
        self._dependence = dependence

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        value = function(*args, **(kwargs or {}))
        if function in _READERS:
            self.found.append(Reading(value, not self._dependence.of(args[0])))
        return value


class _Dependence(TorchDispatchMode):
    """Knows the memory that depends on inputs: a result does if an operand of its operator does."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = {_memory(t) for t in inputs}

    def of(self, tensor: Tensor) -> bool:
        """Return whether a tensor depends on an input."""
        return _memory(tensor) in self._memory

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        operands = {_memory(t) for t in tensors_within((args, options))}
        result = function(*args, **options)
        made = {_memory(t) for t in tensors_within(result)}
        if operands & self._memory:
            self._memory |= made
        else:
            self._memory -= made - operands  # new tensors in memory that was freed
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
