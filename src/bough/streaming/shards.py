"""The safetensors files of a folder: which tensor is in which file, checked before anything is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.errors import CheckpointError
from bough.storage.safetensors_file import Entry, Header, read_header

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Shards:
    """The weights of a folder.

    Attributes:
        folder: the folder.
        headers: {file name: its header}.
        files: {tensor: file name}.
        metadata: of the index; None where there is one file and no index.
    """

    folder: Path
    headers: dict[str, Header]
    files: dict[str, str]
    metadata: dict[str, Any] | None

    @property
    def entries(self) -> dict[str, Entry]:
        """All tensors by name."""
        return {e.name: e for header in self.headers.values() for e in header.entries}

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(e.end - e.start for header in self.headers.values() for e in header.entries)


def read_shards(folder: Path) -> Shards:
    """Read the index and the headers of all files of a folder.

    Raises:
        CheckpointError: there are no safetensors files, one is missing, truncated or damaged, or the index and the files
            differ.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise CheckpointError(
                f"{folder} has no weights as safetensors: neither {INDEX} nor {SINGLE} is there (of other formats, load the "
                "model with from_pretrained, and save it with save_pretrained)"
            )
        header = read_header(folder / SINGLE)
        return Shards(folder, {SINGLE: header}, {e.name: SINGLE for e in header.entries}, None)
    files, metadata = _read_index(index)
    names = sorted(set(files.values()))
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {_some(missing)}, which {INDEX} names: copy all files of the checkpoint")
    headers = {n: read_header(folder / n) for n in names}
    there = {(e.name, n) for n, header in headers.items() for e in header.entries}
    wrong = sorted(there ^ set(files.items()))
    if wrong:
        name, file = wrong[0]
        difference = "is in the file and not in the index" if wrong[0] in there else "is in the index and not in the file"
        raise CheckpointError(f"{index} is wrong: {name} of {file} {difference} ({len(wrong)} such entries)")
    return Shards(folder, headers, files, metadata)


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        files = {str(k): str(v) for k, v in data["weight_map"].items()}
        metadata = dict(data.get("metadata") or {})
    except OSError as error:
        raise CheckpointError(f"{path} can not be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: it is no index of safetensors files ({error})") from None
    outside = [f for f in files.values() if Path(f).name != f]
    if outside:
        raise CheckpointError(f"{path} names {outside[0]!r}, which is no file of the folder")
    return files, metadata


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
