"""Times one op alone, at given widths, on the machine at hand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bough.errors import TraceError
from bough.latency.grids import Widths
from bough.latency.op_shapes import SizedOp, sized
from bough.measuring import device_name, eval_mode, runner

# onnxruntime fuses these into the convolution or matrix product before them, so their own time is taken as zero.
_FUSED = {"onnxruntime": ("batch_norm", "relu", "hardtanh")}
_RUNS, _ENOUGH_SECONDS = 5, 0.02  # runs of a point, and the time after which fewer suffice
_SMALL, _LARGE = 1 << 8, 1 << 20  # elements


@dataclass(frozen=True, slots=True)
class Place:
    """Where ops are timed.

    Attributes:
        device: the torch device.
        dtype: floating-point type of the tensors.
        backend: see `bough.measuring.runner`.
    """

    device: torch.device
    dtype: torch.dtype
    backend: str

    def __str__(self) -> str:
        return device_name(self.device, self.dtype)


class OpTimer:
    """Times ops alone.

    Attributes:
        op_seconds: time of an op that does nearly nothing; 0 for backends other than eager, where it is the overhead of
            calling the whole model.
        byte_seconds: time per byte that an elementwise op reads or writes.

    Raises:
        TraceError: the backend is unknown or cannot run.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        smallest = self._fastest(SizedOp("relu", [[_SMALL]], [False], [None]))
        large = self._fastest(SizedOp("relu", [[_LARGE]], [False], [None]))
        self.op_seconds = smallest if place.backend == "eager" else 0.0
        self.byte_seconds = max(large - smallest, 0.0) / (2 * _LARGE * place.dtype.itemsize)
        self._overhead = smallest - self.op_seconds

    def seconds(self, key: str, widths: Widths) -> float:
        """Return the seconds of the op of `key` at these widths of its letters, without the overhead of a whole call.

        Raises:
            TraceError: the op cannot be run alone.
        """
        op = sized(key, widths)
        if op.name.rstrip("_") in _FUSED.get(self._place.backend, ()):
            return 0.0
        return max(self._fastest(op) - self._overhead, 1e-9)

    def _fastest(self, op: SizedOp) -> float:
        """Return the shortest time of some runs."""
        module = SingleOp(op, self._place)
        with eval_mode(module):
            try:
                run = runner(module, tuple(module.inputs), self._place.backend)
                run()
            except Exception as error:
                raise TraceError(f"{op.name} at {op.shapes} can not be run alone ({self._place.backend}): {error}") from error
            times: list[float] = []
            while len(times) < _RUNS and (len(times) < 2 or sum(times) < _ENOUGH_SECONDS):
                begin = time.perf_counter()
                run()
                times.append(time.perf_counter() - begin)
        return min(times)


class SingleOp(nn.Module):
    """A module of one op, with random tensors: those that the model owns as buffers, the others in `inputs`."""

    def __init__(self, op: SizedOp, place: Place) -> None:
        super().__init__()
        self.op = op
        self.inputs: list[Tensor] = []
        for i, (shape, owned) in enumerate(zip(op.shapes, op.owned, strict=True)):
            tensor = torch.rand(shape, device=place.device, dtype=place.dtype) + 0.5  # variances have to be positive
            if owned:
                self.register_buffer(f"t{i}", tensor)
            else:
                self.inputs.append(tensor)

    def forward(self, *inputs: Tensor) -> Any:
        remaining_inputs = iter(inputs)
        tensors = [getattr(self, f"t{i}") if owned else next(remaining_inputs) for i, owned in enumerate(self.op.owned)]
        function = getattr(torch.ops.aten, self.op.name)
        if self.op.name == "einsum":
            return function(self.op.options[0], tensors)
        remaining = iter(tensors)

        def with_tensors(option: Any) -> Any:  # a list of None stands for a list of tensors, such as the weights of an LSTM
            if isinstance(option, list):
                return [with_tensors(o) for o in option]
            return next(remaining, None) if option is None else option

        return function(*map(with_tensors, self.op.options))
