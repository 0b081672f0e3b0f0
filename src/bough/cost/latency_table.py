"""Latency as a closed form: the sum over ops of measured times of their shapes, and of bytes moved."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bough.arguments import check_arguments, check_fields
from bough.cost.op_shapes import OpShape, is_timed, op_shapes
from bough.cost.polynomials import Builder, Counts, Polynomials, total
from bough.cost.staircase import Grid, Staircases, Widths, stair
from bough.cost.traffic import activations, moving, weights
from bough.errors import PlanError
from bough.graph import Graph
from bough.storage import schema, write_text
from bough.storage.schema import Invalid, read_json

FORMAT, VERSION = "bough-latency-table", 1
_FIELDS = schema.record(
    {
        "format": schema.one_of(FORMAT), "version": schema.one_of(VERSION), "device": schema.text, "backend": schema.text,
        "quantum": schema.whole(1), "op_seconds": schema.number, "byte_seconds": schema.number, "scale": schema.number,
        "factors": schema.table(schema.number),
        "points": schema.table(schema.items(schema.row(schema.items(schema.whole()), schema.number))),
    }
)  # fmt: skip
_SHARES = {1: (1, 2, 4, 6, 8), 2: (1, 2, 4, 6, 8), 3: (2, 4, 8)}  # eighths of the full width, by the number of letters
_FEW = (2, 8)
_MOST_LETTERS = 8
OTHER = "other"


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Seconds of ops by shape, as measured somewhere.

    Attributes:
        device, backend: what was measured: the machine in words, and "eager", "compile", "onnxruntime" or a vendor's own.
        quantum: units that the hardware works on at once: a width counts as the next multiple (one that is at most a few
            times the quantum, such as heads, as it is).
        op_seconds, byte_seconds: an op that is not timed by itself takes the first, and the second for each byte read or
            written.
        points: {key of an op's form: {widths of its letters: seconds}}, see `bough.cost.op_shapes`.
        scale: the ratio of measured to summed times, as measuring a whole model finds it.
        factors: the same by name of op (OTHER: of all that are not timed by themselves), as `correct_table` finds it.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> points = {}
        >>> for key, (width,) in wanted(graph):
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

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def source(self) -> str:
        """What predictions stand on, in words."""
        corrected = f", scaled by {self.scale:.3f} as measured" if self.scale != 1.0 else ""
        return f"predicted from a table of {self.device}, {self.backend}{corrected}"

    def part(self, graph: Graph) -> LatencyForm:
        """The latency of a graph's model as a function of the groups' counts.

        Raises:
            PlanError: the table lacks an op's form, or widths of it.
        """
        return LatencyForm(self, graph)

    def seconds(self, graph: Graph, *counts: Mapping[str, int]) -> NDArray[np.float64]:
        """The predicted latency [plans] with units kept per group name (all where absent)."""
        rows = [[float(c.get(g.name, g.size)) for g in graph.groups] for c in counts or ({},)]
        part = self.part(graph)
        result: NDArray[np.float64] = (part.matrix @ part.terms(np.array(rows).reshape(len(rows), -1)))[0]
        return result

    def scaled(self, factor: float) -> LatencyTable:
        """With all times multiplied."""
        return replace(self, scale=self.scale * factor)

    @staticmethod
    def measure(graph: Graph, backend: str = "eager", **options: Any) -> LatencyTable:
        """Measures a table on the machine at hand: see `bough.measuring.measure_table`, which takes the same options."""
        check_arguments(LatencyTable.measure, locals())
        from bough.measuring import measure_table

        return measure_table(graph, backend, **options)

    def to_json(self) -> str:
        data = {"format": FORMAT, "version": VERSION, "device": self.device, "backend": self.backend}
        numbers = {k: getattr(self, k) for k in ("quantum", "op_seconds", "byte_seconds", "scale")}
        points = {key: [[list(w), t] for w, t in sorted(times.items())] for key, times in self.points.items()}
        return json.dumps({**data, **numbers, "factors": dict(self.factors), "points": points}, indent=1)

    @staticmethod
    def from_json(text: str) -> LatencyTable:
        """Reads what `to_json` wrote.

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
        """Writes JSON, all or nothing."""
        write_text(Path(path), self.to_json())

    @staticmethod
    def load(path: str | Path) -> LatencyTable:
        """Reads what `save` wrote; errors as `from_json`, and PlanError where the file can not be read."""
        check_arguments(LatencyTable.load, locals())
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"the latency table {path} can not be read: {error}") from None
        return LatencyTable.from_json(text)

    def to_csv(self) -> str:
        """The points, a line each: key, widths (such as 64x128), seconds."""
        return to_csv((key, w, t) for key, times in self.points.items() for w, t in sorted(times.items()))

    def with_csv(self, text: str) -> LatencyTable:
        """With the points of a CSV with the columns key, widths, seconds: a vendor fills in what `to_csv(wanted(graph))` asks.

        Raises:
            PlanError: a missing column, or a line that can not be read; the message tells the line.
        """
        points = {key: dict(times) for key, times in self.points.items()}
        for number, line in enumerate(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))), start=2):
            try:
                widths = tuple(int(w) for w in line["widths"].split("x") if w)
                json.loads(line["key"])
                points.setdefault(line["key"], {})[widths] = float(line["seconds"])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise PlanError(
                    f"line {number} of the CSV can not be read ({type(error).__name__}: {error}): the columns are key (JSON), "
                    "widths (such as 64x128) and seconds"
                ) from None
        return replace(self, points=points)._checked()

    def _checked(self) -> LatencyTable:
        """The table itself, if its numbers can be times.

        Raises:
            PlanError: one that is negative, NaN or infinite, or stairs of no width.
        """
        bad = next(((k, w, t) for k, times in self.points.items() for w, t in times.items() if not 0 <= t < math.inf), None)
        if bad:
            raise PlanError(f"a latency of {bad[2]} seconds, of {bad[0]} at widths {list(bad[1])}: times are not negative")
        numbers = {"op_seconds": self.op_seconds, "byte_seconds": self.byte_seconds, "scale": self.scale, **self.factors}
        for name, value in numbers.items():
            if not 0 <= value < math.inf:
                raise PlanError(f"this latency table is damaged: {name} is {value}")
        if self.quantum < 1:
            raise PlanError(f"this latency table is damaged: quantum is {self.quantum}")
        return self


def to_csv(lines: Iterable[tuple[str, Widths, float | None]]) -> str:
    """CSV with the columns key, widths, seconds (empty where None)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", "widths", "seconds"])
    writer.writerows([key, "x".join(map(str, w)), "" if t is None else repr(t)] for key, w, t in lines)
    return out.getvalue()


def wanted(graph: Graph, quantum: int = 8) -> Iterator[tuple[str, Widths]]:
    """The points (key, widths) that a table must have for a graph: multiples of its stairs, from an eighth to the full width.

    Forms of three letters or more are taken at fewer widths each.

    Raises:
        PlanError: an op of too many widths.
    """
    largest: dict[str, list[int]] = {}
    for shape in op_shapes(graph):
        known = largest.setdefault(shape.key, [0] * len(shape.letters))
        for i, space in enumerate(shape.letters):
            known[i] = max(known[i], space.size)
    for key, sizes in largest.items():
        if len(sizes) > _MOST_LETTERS:
            raise PlanError(f"an op has {len(sizes)} widths, more than a table can hold ({_MOST_LETTERS}): {key}")
        shares = _SHARES.get(len(sizes), _FEW)
        steps = [stair(n, quantum) for n in sizes]
        axes = [sorted({min(n, -(-n * s // (8 * q)) * q) for s in shares}) for n, q in zip(sizes, steps, strict=True)]
        yield from ((key, w) for w in product(*axes))


class LatencyForm:
    """A `Part`: a term per op that is timed by itself, and the monomials of the bytes that other ops move.

    Attributes:
        overhead: the seconds that no width changes: of each op whose widths can be cut the time at the least that it was timed
            at, of each other one the table's `op_seconds`.
        ops: how many ops there are.
    """

    def __init__(self, table: LatencyTable, graph: Graph) -> None:
        shapes = list(op_shapes(graph))
        place = {g.atom: i for i, g in enumerate(graph.groups)}
        _check(table, shapes)
        grids = {key: Grid(table.points[key], key) for key in dict.fromkeys(s.key for s in shapes)}
        self._look_up = Staircases([grids[s.key] for s in shapes], table.quantum)
        builder = Builder(place)
        builder.add([(1.0, builder.expand(()))])  # row 0: for letters that an op has not
        self._rows = np.zeros((len(shapes), max((len(s.letters) for s in shapes), default=0)), dtype=np.int64)
        row = 0
        for i, shape in enumerate(shapes):
            for j, space in enumerate(shape.letters):
                builder.add([(1.0, builder.expand((space,)))])
                row += 1
                self._rows[i, j] = row
        self._widths = builder.build()
        self._others = _others(table, graph)
        ops = [tuple(sorted({place[a] for s in x.letters for a in s.atoms if a in place})) for x in shapes]
        self.scopes = [*ops, *self._others.scopes]
        self.names = [*(s.name for s in shapes), *(OTHER for _ in self._others.scopes)]  # of each term
        factors = [table.factors.get(name, 1.0) for name in self.names]
        self.matrix = np.concatenate([np.ones((1, len(shapes))), self._others.matrix], axis=1) * factors * table.scale
        others = sum(not is_timed(op) for op, _ in moving(graph))
        least = [float(grids[s.key].times.min()) if s.letters else table.op_seconds for s in shapes]
        timed = sum(seconds * factor for seconds, factor in zip(least, factors, strict=False))
        self.overhead = table.scale * (timed + others * table.op_seconds * table.factors.get(OTHER, 1.0))
        self.ops = len(shapes) + others

    def by_name(self, counts: Counts) -> dict[str, NDArray[np.float64]]:
        """The seconds [plans] that the ops of each name take together."""
        seconds = self.matrix.T * self.terms(counts)
        return {name: seconds[[n == name for n in self.names]].sum(axis=0) for name in dict.fromkeys(self.names)}

    def terms(self, counts: Counts) -> NDArray[np.float64]:
        widths = self._widths.matrix @ self._widths.terms(counts)
        return np.concatenate([self._look_up(widths[self._rows]), self._others.terms(counts)])


def _others(table: LatencyTable, graph: Graph) -> Polynomials:
    """Ops that are not timed by themselves: a constant each, and the bytes that they read and write."""
    ops = [(op, size) for op, size in moving(graph) if not is_timed(op)]
    terms = [(table.op_seconds, ()) for _ in ops]
    moved = [(size * table.byte_seconds, axes) for op, size in ops for axes in (*activations(op), *weights(op))]
    return total((g.atom for g in graph.groups), [*terms, *moved])


def _check(table: LatencyTable, shapes: list[OpShape]) -> None:
    missing = list(dict.fromkeys(s.key for s in shapes if s.key not in table.points))
    for s in shapes:
        for letter, space, widths in zip(
            ascii_lowercase, s.letters, zip(*table.points.get(s.key, ()), strict=True), strict=False
        ):
            if space.size > max(widths):
                missing.append(f"{s.key} with {letter} up to {space.size}")
    if missing:
        raise PlanError(
            f"the table of {table.device}, {table.backend} has no times of {len(missing)} forms of ops, such as {missing[0]}: "
            "complete it by LatencyTable.measure(graph, ..., onto=table) there, or by with_csv"
        )
