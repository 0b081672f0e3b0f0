"""The folder of a contrast: what run it is of, and its finished rows, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bough.comparing.folder import claim
from bough.contrasting.contrast_rows import ROW_SCHEMA, ContrastRow
from bough.errors import ComparisonError
from bough.storage import append_line, complete_lines, make_folder
from bough.storage.schema import Invalid, read_json

ROWS, PLOT = "rows.jsonl", "contrast.png"


class ContrastFolder:
    """Finished rows by variant and share; without a path they last as long as this process.

    Args:
        path: of the folder; None for no folder.
        identity: what distinguishes this run from others.

    Raises:
        ComparisonError: the folder holds another run, or a damaged file.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, str]) -> None:
        self.path = path
        self.rows: dict[tuple[str, float | None], ContrastRow] = {}
        if path is not None:
            make_folder(path)
            claim(path, dict(identity))
            self.rows = {row.key: row for row in _read(path / ROWS)}

    def add(self, row: ContrastRow) -> None:
        """Keep a finished row."""
        self.rows[row.key] = row
        if self.path is not None:
            append_line(self.path / ROWS, json.dumps(row.to_dict()))


def _read(file: Path) -> list[ContrastRow]:
    """Return the rows of a file."""
    rows = []
    for number, line in enumerate(complete_lines(file), 1):
        try:
            rows.append(ContrastRow.of(ROW_SCHEMA(read_json(line), "")))
        except Invalid as error:
            raise ComparisonError(f"{file}, line {number} is damaged ({error}): delete the line to make it again") from None
    return rows
