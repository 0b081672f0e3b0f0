"""Measures a `LatencyTable` on the machine at hand."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.cost import LatencyTable
from bough.cost.latency_table import wanted
from bough.cost.op_shapes import SizedOp, sized
from bough.cost.staircase import Widths
from bough.errors import TraceError
from bough.graph import Graph
from bough.measuring.backends import evaluating, runner

# What onnxruntime folds into the convolution or matrix product before, and so is said to take no time.
_FUSED = {"onnxruntime": ("batch_norm", "relu", "hardtanh")}
_RUNS, _ENOUGH, _SAVE_EVERY = 5, 0.02, 10.0  # runs of a point, seconds after which fewer do, seconds
_SMALL, _LARGE = 1 << 8, 1 << 20  # elements


@dataclass(frozen=True, slots=True)
class _Where:
    device: torch.device
    dtype: torch.dtype
    backend: str


def measure_table(
    what: Graph | Iterable[tuple[str, Widths]], backend: str = "eager", *, device: str | torch.device | None = None,
    quantum: int = 8, seconds: float = 60.0, onto: LatencyTable | None = None, path: str | Path | None = None,
    progress: bool = True,
) -> LatencyTable:  # fmt: skip
    """Times the distinct forms of a graph's ops, each alone, on a grid of widths (which ops: see `is_timed`).

    All points are gone through again and again, and of each the least time is kept, so that a moment at which the machine
    was busy spoils none. The number of threads is torch's.

    Args:
        what: a graph; or its points, as `bough.cost.latency_table.wanted` gives them, on a machine that has no model.
        backend: "eager", "compile" or "onnxruntime".
        device: where; by default that of the graph's model, whose precision is taken too (float32 for points).
        quantum: units that the machine works on at once, see `LatencyTable`.
        seconds: after which no further round over the points begins; the first always ends.
        onto: a table of the same machine and backend, to complete.
        path: a JSON file to which the table is saved as it grows; one that is there is completed.
        progress: whether a bar is shown.

    Raises:
        TraceError: `onto` or the file at `path` is of another machine or backend, or an op can not be run alone.
    """
    check_arguments(measure_table, locals())
    if seconds < 0:
        raise TraceError(f"seconds={seconds}: the time to measure for can not be negative")
    if quantum < 1:
        raise TraceError(f"quantum={quantum}: the hardware works on at least one unit at once")
    where = _where(what, backend, device)
    wished = list(wanted(what, quantum) if isinstance(what, Graph) else what)
    if path is not None and Path(path).exists() and onto is None:
        onto = LatencyTable.load(path)
    here = device_name(where.device, where.dtype)
    table = onto or LatencyTable(here, backend, quantum, 0.0, 0.0)
    if (table.device, table.backend) != (here, backend):
        raise TraceError(f"the table is of {table.device}, {table.backend}: here it is {here}, {backend}")
    base = _least(_Alone(SizedOp("relu", [[_SMALL]], [False], [None]), where), where)
    large = _least(_Alone(SizedOp("relu", [[_LARGE]], [False], [None]), where), where)
    each = base if backend == "eager" else 0.0  # elsewhere that is what calling the whole model takes
    moved = 2 * _LARGE * where.dtype.itemsize
    table = replace(table, op_seconds=each, byte_seconds=max(large - base, 0.0) / moved)
    points = {key: dict(times) for key, times in table.points.items()}
    from rich.progress import Progress  # a third of the time that importing bough would take

    with Progress(disable=not progress, transient=True) as bar:
        saved = time.monotonic()
        for key, widths in bar.track(_rounds(wished, table, seconds), total=None, description="timing ops"):
            op = sized(key, widths)
            fused = op.name.rstrip("_") in _FUSED.get(backend, ())
            took = 0.0 if fused else max(_least(_Alone(op, where), where) - (base - each), 1e-9)
            known = points.setdefault(key, {})
            known[widths] = min(took, known.get(widths, took))
            if path is not None and time.monotonic() - saved > _SAVE_EVERY:
                replace(table, points=points).save(path)
                saved = time.monotonic()
    table = replace(table, points=points)
    if path is not None:
        table.save(path)
    return table


def device_name(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """The machine in words: processor, threads, precision."""
    device = torch.device(device)
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kind}"
    return f"{_processor()}, {torch.get_num_threads()} threads, {kind}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _where(what: object, backend: str, device: str | torch.device | None) -> _Where:
    tensor = torch.zeros(0)
    if isinstance(what, Graph):
        held = (what.tensor(n) for n, s in what.states.items() if s.parameter)
        tensor = next((t for t in held if t.is_floating_point()), tensor)
    try:
        return _Where(tensor.device if device is None else torch.device(device), tensor.dtype, backend)
    except RuntimeError:
        raise TraceError(f"device={device!r} is no device of torch: use 'cpu' or 'cuda', for instance") from None


def _rounds(points: list[tuple[str, Widths]], table: LatencyTable, seconds: float) -> Iterator[tuple[str, Widths]]:
    """First the points that are missing, then all, again and again."""
    begin = time.monotonic()
    yield from ((key, w) for key, w in points if w not in table.points.get(key, ()))
    while points and time.monotonic() - begin < seconds:
        yield from points


def _least(op: _Alone, where: _Where) -> float:
    """The least seconds of some runs."""
    with evaluating(op):
        try:
            run = runner(op, tuple(op.given), where.backend)
            run()
        except Exception as error:
            raise TraceError(f"{op.op.name} at {op.op.shapes} can not be run alone ({where.backend}): {error}") from error
        times: list[float] = []
        while len(times) < _RUNS and (len(times) < 2 or sum(times) < _ENOUGH):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return min(times)


class _Alone(nn.Module):
    """One op with random tensors: those that the model holds as buffers, the others to be given."""

    def __init__(self, op: SizedOp, where: _Where) -> None:
        super().__init__()
        self.op = op
        self.given: list[Tensor] = []
        for i, (shape, held) in enumerate(zip(op.shapes, op.held, strict=True)):
            tensor = torch.rand(shape, device=where.device, dtype=where.dtype) + 0.5  # variances are among them
            if held:
                self.register_buffer(f"t{i}", tensor)
            else:
                self.given.append(tensor)

    def forward(self, *given: Tensor) -> Any:
        rest = iter(given)
        tensors = [getattr(self, f"t{i}") if held else next(rest) for i, held in enumerate(self.op.held)]
        function = getattr(torch.ops.aten, self.op.name)
        if self.op.name == "einsum":
            return function(self.op.options[0], tensors)
        left = iter(tensors)

        def filled(option: Any) -> Any:  # a list of tensors, such as the weights of an LSTM, is one of places
            if isinstance(option, list):
                return [filled(o) for o in option]
            return next(left, None) if option is None else option

        return function(*map(filled, self.op.options))
