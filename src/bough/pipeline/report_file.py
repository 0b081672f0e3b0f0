"""The report of a pipeline in its folder: which run it is, and a record of each finished stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bough.errors import PipelineError
from bough.pipeline.records import StageRecord
from bough.storage import write_text
from bough.storage.schema import Invalid, items, nullable, number, read_json, record, table, text

REPORT, PAGE = "report.json", "report.html"


def _any(value: Any, place: str) -> Any:
    return value


_RECORD = record(
    {"name": text, "seconds": number, "metric": nullable(number), "cost": table(number), "details": table(_any)}
)  # fmt: skip
_REPORT = record({"start": table(_any), "settings": items(_any), "stages": items(_RECORD)})


def read_report(folder: Path, start: dict[str, Any], settings: Sequence[Any]) -> list[StageRecord]:
    """Return the records of the stages that an earlier call has finished; none if the folder has no report.

    Args:
        folder: of the run.
        start: what identifies the start of the run: weights, inputs, seed.
        settings: of each stage. Stages may be appended to a finished run; the earlier ones must be the same.

    Raises:
        PipelineError: the report is damaged, or is of another pipeline.
    """
    file = folder / REPORT
    if not file.exists():
        return []
    try:
        found = _REPORT(read_json(file.read_bytes()), "")
    except Invalid as error:
        raise PipelineError(f"{file} is damaged ({error}): use another folder, or delete this one") from None
    other = next((k for k in start if found["start"].get(k) != start[k]), None)
    if other is not None:
        hint = " (does build_model draw random weights from a generator of its own? seed it)" if other == "weights" else ""
        raise PipelineError(f"{folder} holds a run with another {other}{hint}: use another folder, or delete this one")
    done = [StageRecord(**stage) for stage in found["stages"]]
    count = max(len(done) - 1, 0)  # the first record is of the start
    for i, (there, here) in enumerate(zip(found["settings"][:count], settings, strict=False), 1):
        if there != here:
            raise PipelineError(
                f"{folder} holds a run whose stage {i} ({there.get('type')}) has {_difference(there, here)}: use another "
                "folder, or delete this one"
            )
    return done[: len(settings) + 1]


def write_report(folder: Path, start: dict[str, Any], settings: Sequence[Any], stages: Sequence[StageRecord]) -> None:
    """Write the report as it stands."""
    content = {"start": start, "settings": list(settings), "stages": [s.to_dict() for s in stages]}
    write_text(folder / REPORT, json.dumps(content, indent=1) + "\n")


def as_json_values(value: Any) -> Any:
    """Return a value as it is read back from JSON; numbers that are not finite, which JSON does not have, as null."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    key = next(k for k in {**there, **here} if there.get(k) != here.get(k))
    return f"{key} {there.get(key)!r:.80}, and {here.get(key)!r:.80} is asked for"
