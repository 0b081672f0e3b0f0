"""A comparison's folder: what run it is of, and the rows that are done, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bough.comparing.rows import Key, Row
from bough.errors import ComparisonError
from bough.graph import Graph
from bough.storage import append_line, complete_lines, make_folder, tensors_digest, write_text
from bough.storage.schema import Invalid, items, nullable, number, read_json, record, table, text, whole

RUN, ROWS, PLOT = "run.json", "rows.jsonl", "comparison.png"

_NUMBERS = table(number)
_ROW = record(
    {
        "criterion": text, "allocation": text, "budget": text, "seed": nullable(whole(-(2**63))), "metrics": _NUMBERS,
        "cost": _NUMBERS, "kept": _NUMBERS, "seconds": _NUMBERS, "notes": items(text), "error": nullable(text),
    }
)  # fmt: skip


def weights_of(graph: Graph) -> str:
    """A digest of all parameters and buffers: rows of other weights are rows of another run."""
    return tensors_digest((name, graph.tensor(name)) for name in sorted(graph.states))[:16]


class Folder:
    """The rows done of the run that `identity` distinguishes from others; with no path, those of this process alone.

    A row is appended at once when it is done, so whoever is killed loses the one that was being made.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, str]) -> None:
        self.path = None if path is None else Path(path)
        self.done: dict[Key, Row] = {}
        if self.path is not None:
            make_folder(self.path)
            claim(self.path, dict(identity))
            rows = (_row(self.path / ROWS, i, line) for i, line in enumerate(complete_lines(self.path / ROWS), 1))
            self.done = {row.key: row for row in rows}

    def add(self, row: Row) -> None:
        self.done[row.key] = row
        if self.path is not None:
            append_line(self.path / ROWS, json.dumps(row.to_dict()))


def claim(folder: Path, identity: dict[str, str]) -> None:
    """Write what run a folder is of, or raise ComparisonError if it holds another run."""
    file = folder / RUN
    if not file.exists():
        if (folder / ROWS).exists():
            raise ComparisonError(f"{folder} has {ROWS} without {RUN}, which says of which run they are: use another folder")
        write_text(file, json.dumps(identity, indent=2) + "\n")
        return
    try:
        there = table(text)(read_json(file.read_bytes()), "")
    except Invalid as error:
        raise ComparisonError(f"{file} is damaged ({error}): use another folder") from None
    other = [k for k in {**there, **identity} if there.get(k) != identity.get(k)]
    if other:
        said = "; ".join(f"{k} is {identity.get(k)!r} here, {there.get(k)!r} there" for k in other)
        hint = " (is the model built with random weights? seed them)" if other == ["weights"] else ""
        raise ComparisonError(f"{folder} holds another run: {said}{hint}. Use another folder")


def _row(file: Path, at: int, line: str) -> Row:
    try:
        return Row.of(_ROW(read_json(line), ""))
    except Invalid as error:
        raise ComparisonError(f"{file}, line {at} is damaged ({error}): take the line out, and its row is made again") from None


def identity_of(graph: Graph, inputs: list[Any], more: Mapping[str, str]) -> dict[str, str]:
    """Return what distinguishes a run from others: the model, its inputs' shapes, and what the caller adds."""
    shapes = ", ".join(f"{list(t.shape)} {t.dtype}" for t in inputs)
    return {"model": graph.fingerprint, "weights": weights_of(graph), "inputs": shapes, **more}
