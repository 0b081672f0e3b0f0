"""The grid of widths at which the ops of a graph have to be timed, and that grid as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import product

from bough.errors import PlanError
from bough.graph import Graph
from bough.latency.grids import Widths, width_step
from bough.latency.op_shapes import op_shapes

# Eighths of the full width, by the number of letters of an op; ops of more letters take the least.
_EIGHTHS = {1: (1, 2, 4, 6, 8), 2: (1, 2, 4, 6, 8), 3: (2, 4, 8)}
_EIGHTHS_OF_MANY = (2, 8)
_MAX_LETTERS = 8


def required_points(graph: Graph, quantum: int = 8) -> Iterator[tuple[str, Widths]]:
    """Yield the points (key, widths) that a table must have for a graph.

    Widths are multiples of their `width_step`, from an eighth to the full width; ops of three letters or more have fewer
    widths for each letter.

    Args:
        graph: of the model that is timed.
        quantum: widths are multiples of it where that leaves enough of them.

    Raises:
        PlanError: an op depends on too many widths.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> sorted({widths for key, widths in required_points(graph)})[:3]
        [(8,), (16,), (32,)]
    """
    largest: dict[str, list[int]] = {}
    for shape in op_shapes(graph):
        known = largest.setdefault(shape.key, [0] * len(shape.letters))
        for i, space in enumerate(shape.letters):
            known[i] = max(known[i], space.size)
    for key, sizes in largest.items():
        if len(sizes) > _MAX_LETTERS:
            raise PlanError(f"an op has {len(sizes)} widths, more than a table can hold ({_MAX_LETTERS}): {key}")
        eighths = _EIGHTHS.get(len(sizes), _EIGHTHS_OF_MANY)
        steps = [width_step(n, quantum) for n in sizes]
        axes = [sorted({min(n, -(-n * e // (8 * step)) * step) for e in eighths}) for n, step in zip(sizes, steps, strict=True)]
        yield from ((key, w) for w in product(*axes))


def to_csv(lines: Iterable[tuple[str, Widths, float | None]]) -> str:
    """Return CSV with the columns key, widths (such as 64x128) and seconds (empty where None).

    Args:
        lines: (key, widths, seconds or None) of each point.

    Example:
        >>> print(to_csv([("relu", (64, 128), 1e-05)]), end="")
        key,widths,seconds
        relu,64x128,1e-05
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", "widths", "seconds"])
    writer.writerows([key, "x".join(map(str, w)), "" if t is None else repr(t)] for key, w, t in lines)
    return out.getvalue()


def from_csv(text: str) -> Iterator[tuple[str, Widths, float]]:
    """Yield the lines of a CSV that `to_csv` wrote and whose seconds are filled in.

    Raises:
        PlanError: a missing column, or a line that cannot be read; the message has the line's number.
    """
    for number, line in enumerate(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))), start=2):
        try:
            widths = tuple(int(w) for w in line["widths"].split("x") if w)
            json.loads(line["key"])
            yield line["key"], widths, float(line["seconds"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(
                f"line {number} of the CSV can not be read ({type(error).__name__}: {error}): the columns are key (JSON), "
                "widths (such as 64x128) and seconds"
            ) from None
