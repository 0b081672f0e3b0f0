"""Latency tables: measured seconds of ops by shape, from which the latency of any plan is predicted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bough.arguments import check_arguments, check_fields
from bough.errors import PlanError, TraceError
from bough.graph import Graph
from bough.latency.form import LatencyForm
from bough.latency.grids import Widths
from bough.latency.line import LatencyLine
from bough.latency.op_timing import OpTimer, Place
from bough.latency.points import from_csv, required_points, to_csv
from bough.storage import schema, write_text
from bough.storage.schema import Invalid, read_json

FORMAT, VERSION = "bough-latency-table", 1
_SAVE_SECONDS = 10.0
_FIELDS = schema.record(
    {
        "format": schema.one_of(FORMAT), "version": schema.one_of(VERSION), "device": schema.text, "backend": schema.text,
        "quantum": schema.whole(1), "op_seconds": schema.number, "byte_seconds": schema.number, "scale": schema.number,
        "factors": schema.table(schema.number),
        "points": schema.table(schema.items(schema.row(schema.items(schema.whole()), schema.number))),
    },
    {"op_overhead": schema.number},
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Measured seconds of ops by shape, on one device and backend.

    Attributes:
        device: the measured machine in words.
        backend: "eager", "compile", "onnxruntime" or a vendor's own.
        quantum: number of units that the hardware processes together; wide axes are rounded up to a multiple of it, axes
            narrower than four times the quantum (such as heads) are not.
        op_seconds: seconds of an op that is not timed by itself ...
        byte_seconds: ... plus these seconds for each byte that it reads or writes.
        points: {key of an op's shape: {widths of its letters: seconds}}, see `bough.latency.op_shapes`.
        scale: ratio of the measured time of a whole model to the sum over its ops.
        factors: the same ratio by name of op ("other": all ops that are not timed by themselves), see `correct_table`.
        op_overhead: seconds that each op of a whole model takes besides, whatever its widths, see `correct_table`; times
            `scale`, as all times.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> points = {}
        >>> from bough.latency import required_points
        >>> for key, (width,) in required_points(graph):
        ...     points.setdefault(key, {})[(width,)] = 1e-6 * width
        >>> table = LatencyTable("a chip", "its compiler", 8, 0.0, 0.0, points)
        >>> [round(1e6 * float(t)) for t in table.seconds(graph, {"0": 32}, {"0": 17}, {"0": 16})]
        [96, 72, 48]
    """

    device: str
    backend: str
    quantum: int
    op_seconds: float
    byte_seconds: float
    points: Mapping[str, Mapping[Widths, float]] = field(default_factory=dict)
    scale: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)
    op_overhead: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def source(self) -> str:
        """Return the origin of the predictions, in words."""
        corrected = f", scaled by {self.scale:.3f} as measured" if self.scale != 1.0 else ""
        return f"predicted from a table of {self.device}, {self.backend}{corrected}"

    def part(self, graph: Graph) -> LatencyForm:
        """Return the latency of a graph's model as a function of the groups' counts.

        Raises:
            PlanError: the table lacks an op's form, or widths of it.
        """
        return LatencyForm(self, graph)

    def seconds(self, graph: Graph, *counts: Mapping[str, int]) -> NDArray[np.float64]:
        """Return the predicted latency [plans] in seconds, with the units kept per group name (all units of absent groups)."""
        rows = [[float(c.get(g.name, g.size)) for g in graph.groups] for c in counts or ({},)]
        part = self.part(graph)
        result: NDArray[np.float64] = (part.matrix @ part.terms(np.array(rows).reshape(len(rows), -1)))[0]
        return result

    def scaled(self, factor: float) -> LatencyTable:
        """Return the table with all times multiplied by `factor`."""
        return replace(self, scale=self.scale * factor)

    def on_line(self, line: LatencyLine) -> LatencyTable:
        """Return the table that predicts what the line says of this table's predictions."""
        scale = self.scale * line.slope
        return replace(self, scale=scale, op_overhead=self.op_overhead + line.op_overhead / scale)

    def to_json(self) -> str:
        """Return the table as JSON text."""
        data = {"format": FORMAT, "version": VERSION, "device": self.device, "backend": self.backend}
        numbers = {k: getattr(self, k) for k in ("quantum", "op_seconds", "byte_seconds", "scale", "op_overhead")}
        points = {key: [[list(w), t] for w, t in sorted(times.items())] for key, times in self.points.items()}
        return json.dumps({**data, **numbers, "factors": dict(self.factors), "points": points}, indent=1)

    @staticmethod
    def from_json(text: str) -> LatencyTable:
        """Return the table that `to_json` wrote.

        Raises:
            PlanError: text that is not a table, is damaged, or is of another version.
        """
        check_arguments(LatencyTable.from_json, locals())
        try:
            data = read_json(text)
            if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
                found = f": {data.get('format')!r} {data.get('version')!r}" if isinstance(data, dict) else ""
                raise PlanError(f"this is no latency table of version {VERSION}{found}")
            fields = _FIELDS(data, "")
        except Invalid as error:
            raise PlanError(f"this latency table is damaged: {error}") from None
        points = {key: {tuple(w): float(t) for w, t in times} for key, times in fields.pop("points").items()}
        del fields["format"], fields["version"]
        return LatencyTable(points=points, **fields)._checked()

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, atomically."""
        write_text(Path(path), self.to_json())

    @staticmethod
    def load(path: str | Path) -> LatencyTable:
        """Return the table that `save` wrote.

        Raises:
            PlanError: the file cannot be read, or is no valid table.
        """
        check_arguments(LatencyTable.load, locals())
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"the latency table {path} can not be read: {error}") from None
        return LatencyTable.from_json(text)

    def to_csv(self) -> str:
        """Return the points as CSV, a line each: key, widths (such as 64x128), seconds."""
        return to_csv((key, w, t) for key, times in self.points.items() for w, t in sorted(times.items()))

    def with_csv(self, text: str) -> LatencyTable:
        """Return the table with further points, of a CSV with the columns key, widths and seconds.

        For a device that bough does not run on: `to_csv(required_points(graph))` lists the points, the vendor's tools time
        them.

        Raises:
            PlanError: a missing column, or a line that cannot be read; the message has the line's number.
        """
        points = {key: dict(times) for key, times in self.points.items()}
        for key, widths, seconds in from_csv(text):
            points.setdefault(key, {})[widths] = seconds
        return replace(self, points=points)._checked()

    @staticmethod
    def measure(
        source: Graph | Iterable[tuple[str, Widths]], backend: str = "eager", *, device: str | torch.device | None = None,
        quantum: int = 8, seconds: float = 60.0, onto: LatencyTable | None = None, path: str | Path | None = None,
        progress: bool = True,
    ) -> LatencyTable:  # fmt: skip
        """Time the distinct op shapes of a graph, each op alone, on a grid of widths.

        Passes over all points are repeated and the shortest time of each point is kept, so that other work on the machine
        does not distort single points. The number of threads is torch's.

        Args:
            source: a graph; or its points, as `bough.latency.required_points` yields them, on a machine without the model.
            backend: "eager", "compile" or "onnxruntime".
            device: by default that of the graph's model, whose precision is taken too (float32 for points).
            quantum: number of units that the hardware processes together, see `LatencyTable`.
            seconds: no further pass over the points begins after this time; the first pass is always completed.
            onto: a table of the same machine and backend, which is completed.
            path: a JSON file to which the table is saved while it grows; a table in an existing file is completed.
            progress: whether a progress bar is shown.

        Raises:
            TraceError: `onto` or the file at `path` is of another machine or backend, or an op cannot be run alone.
        """
        check_arguments(LatencyTable.measure, locals())
        if seconds < 0:
            raise TraceError(f"seconds={seconds}: the time to measure for can not be negative")
        if quantum < 1:
            raise TraceError(f"quantum={quantum}: the hardware works on at least one unit at once")
        place = _place(source, backend, device)
        if path is not None and Path(path).exists() and onto is None:
            onto = LatencyTable.load(path)
        table = onto or LatencyTable(str(place), backend, quantum, 0.0, 0.0)
        if (table.device, table.backend) != (str(place), backend):
            raise TraceError(f"the table is of {table.device}, {table.backend}: here it is {place}, {backend}")
        required = list(required_points(source, quantum) if isinstance(source, Graph) else source)
        for table in _growing(table, required, OpTimer(place), seconds, progress):  # noqa: B020 - each is the next version
            if path is not None:
                table.save(path)
        return table

    def _checked(self) -> LatencyTable:
        """Return the table itself after checking its numbers.

        Raises:
            PlanError: a time is negative, NaN or infinite, or the quantum is below 1.
        """
        bad = next(((k, w, t) for k, times in self.points.items() for w, t in times.items() if not 0 <= t < math.inf), None)
        if bad:
            raise PlanError(f"a latency of {bad[2]} seconds, of {bad[0]} at widths {list(bad[1])}: times are not negative")
        numbers = {"op_seconds": self.op_seconds, "byte_seconds": self.byte_seconds, "scale": self.scale, **self.factors}
        numbers["op_overhead"] = self.op_overhead
        for name, value in numbers.items():
            if not 0 <= value < math.inf:
                raise PlanError(f"this latency table is damaged: {name} is {value}")
        if self.quantum < 1:
            raise PlanError(f"this latency table is damaged: quantum is {self.quantum}")
        return self


def _growing(
    table: LatencyTable, required: list[tuple[str, Widths]], timer: OpTimer, seconds: float, progress: bool
) -> Iterator[LatencyTable]:
    """Yield the table every few seconds while its points are timed, and once at the end."""
    from rich.progress import Progress  # importing rich takes a third of the time of importing bough

    table = replace(table, op_seconds=timer.op_seconds, byte_seconds=timer.byte_seconds)
    points = {key: dict(times) for key, times in table.points.items()}
    with Progress(disable=not progress, transient=True) as bar:
        saved = time.monotonic()
        for key, widths in bar.track(_passes(required, table, seconds), total=None, description="timing ops"):
            known = points.setdefault(key, {})
            known[widths] = min(timer.seconds(key, widths), known.get(widths, math.inf))
            if time.monotonic() - saved > _SAVE_SECONDS:
                yield replace(table, points=points)
                saved = time.monotonic()
    yield replace(table, points=points)


def _passes(required: list[tuple[str, Widths]], table: LatencyTable, seconds: float) -> Iterator[tuple[str, Widths]]:
    """Yield the points that the table lacks, then all points again and again until the time is over."""
    begin = time.monotonic()
    yield from ((key, w) for key, w in required if w not in table.points.get(key, ()))
    while required and time.monotonic() - begin < seconds:
        yield from required


def _place(source: object, backend: str, device: str | torch.device | None) -> Place:
    """Return where the ops of a graph, or of points, are timed."""
    tensor = torch.zeros(0)
    if isinstance(source, Graph):
        parameters = (source.tensor(n) for n, s in source.states.items() if s.parameter)
        tensor = next((t for t in parameters if t.is_floating_point()), tensor)
    try:
        return Place(tensor.device if device is None else torch.device(device), tensor.dtype, backend)
    except RuntimeError:
        raise TraceError(f"device={device!r} is no device of torch: use 'cpu' or 'cuda', for instance") from None
