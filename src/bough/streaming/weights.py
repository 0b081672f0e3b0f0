"""The values of parameters, read from files when a criterion asks for them; what was computed from them is logged."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bough.errors import CheckpointError
from bough.importance.reduce import Elementwise, Reduce, sums_along
from bough.storage.atomic import explained
from bough.storage.safetensors_file import TensorFile
from bough.streaming.ahead import ahead
from bough.streaming.names import Names
from bough.streaming.pieces import Placed
from bough.streaming.shards import Shards

_BLOCK = 1 << 22  # bytes that are read at a time


class StreamedWeights:
    """A `WeightSource` that reads one parameter at a time.

    Args:
        shards: the files.
        placed: where in the model each tensor of the files belongs.
        names: of the model.
        log: keeps reductions, so that a resumed run reads no tensor again; None keeps none.
        on_read: called with the number of bytes of each parameter that was read.
    """

    def __init__(
        self, shards: Shards, placed: Placed, names: Names, log: ReductionLog | None = None,
        on_read: Callable[[int], object] = lambda size: None,
    ) -> None:  # fmt: skip
        self._buffers = [torch.empty(_BLOCK, dtype=torch.uint8) for _ in range(2)]  # one is read, the other used
        self._shards, self._names, self._log, self._on_read = shards, names, log, on_read
        self._placed = placed
        self._entries = shards.entries
        self._tensors: dict[str, list[str]] = {}
        for name, (part, _) in placed.parts.items():
            self._tensors.setdefault(names.same[part.parameter], []).append(name)

    def size(self, name: str) -> int:
        """Return the bytes that a parameter takes in the files."""
        return sum(e.end - e.start for e in map(self._entries.__getitem__, self._tensors[self._names.same[name]]))

    def tensor(self, name: str) -> Tensor:
        """Return the values of a parameter or saved buffer.

        Raises:
            CheckpointError: it is in no file, or the file can not be read.
        """
        tensors = self._parts(name)
        self._on_read(self.size(name))
        if self._is_whole(name):
            return self._read(tensors[0])
        value = torch.empty(self._names.parameters[self._names.same[name]], dtype=self._entries[tensors[0]].dtype)
        for part in tensors:
            value[self._placed.parts[part][0].index] = self._read(part)
        return value

    def reduce(self, name: str, dims: Sequence[int], reduction: Reduce) -> dict[int, Tensor]:
        """Return `reduction(self.tensor(name), dim)` for each dim, from the log if it is there; files are read once."""
        logged: dict[int, Tensor] = {}
        for dim in dims:
            found = None if self._log is None else self._log.next(f"{name} {dim}")
            if found is None:
                break
            logged[dim] = found
        left = [dim for dim in dims if dim not in logged]
        if not left:
            self._on_read(self.size(name))
            return logged
        if isinstance(reduction, Elementwise) and self._is_whole(name):
            sums = reduction.along(left, self._rows(name, reduction))
            self._on_read(self.size(name))
        else:
            sums = sums_along(reduction, self.tensor(name), left)
        for dim in left:
            logged[dim] = sums[dim].double()
            if self._log is not None:
                self._log.append(f"{name} {dim}", logged[dim])
        return logged

    def _parts(self, name: str) -> list[str]:
        """Return the tensors that a parameter is made of."""
        first = self._names.same.get(name, name)
        if first not in self._tensors:
            raise CheckpointError(f"{self._shards.folder}: {name} is in no file, so it can not be scored")
        return self._tensors[first]

    def _is_whole(self, name: str) -> bool:
        """Return whether one tensor has all of a parameter."""
        tensors = self._parts(name)
        return len(tensors) == 1 or prod(self._entries[tensors[0]].shape) == prod(
            self._names.parameters[self._names.same[name]]
        )

    def _rows(self, name: str, reduction: Elementwise) -> Iterator[Tensor]:
        """Return the rows of a parameter that is one tensor, as many at a time as a reduction takes."""
        tensor = self._parts(name)[0]
        entry = self._entries[tensor]
        step = reduction.rows(entry.shape)
        with (
            TensorFile(self._shards.folder / self._shards.files[tensor]) as file,
            closing(ahead(file.blocks(entry, self._buffers, step))) as blocks,
        ):
            for rows in blocks:
                yield from rows.split(step)

    def _read(self, name: str) -> Tensor:
        entry = self._entries[name]
        with TensorFile(self._shards.folder / self._shards.files[name]) as file:
            return file.rows(entry)


class ReductionLog:
    """Results of reductions in the order in which they were made, in a file; an incomplete last record is dropped.

    A record is a JSON line (key, number of float64 values, their CRC-32) and the values.
    """

    def __init__(self, path: Path) -> None:
        with explained(path):
            self._file = open(path, "a+b")  # noqa: SIM115 - closed by `close`
        self._records = self._read()

    def _read(self) -> Iterator[tuple[str, Tensor]]:
        records: list[tuple[str, Tensor]] = []
        self._file.seek(0)
        good = 0
        while (line := self._file.readline()).endswith(b"\n"):
            try:
                key, count, digest = json.loads(line)
                content = self._file.read(8 * int(count))
                if len(content) != 8 * int(count) or zlib.crc32(content) != digest:
                    break
            except (ValueError, TypeError, struct.error):
                break
            records.append((str(key), torch.from_numpy(np.frombuffer(content, dtype="<f8").copy())))
            good = self._file.tell()
        self._file.truncate(good)
        self._file.seek(0, os.SEEK_END)
        return iter(records)

    def next(self, key: str) -> Tensor | None:
        """Return the next result that was logged; None if there is no further one.

        Raises:
            CheckpointError: the next result is of another key.
        """
        found = next(self._records, None)
        if found is None:
            return None
        if found[0] != key:
            raise CheckpointError(f"{self._file.name} is of another run ({found[0]} where {key} is asked for): delete it")
        return found[1]

    def append(self, key: str, values: Tensor) -> None:
        """Add a result to the file."""
        content = values.numpy().astype("<f8").tobytes()
        with explained(Path(self._file.name)):
            self._file.write(json.dumps([key, len(values), zlib.crc32(content)]).encode() + b"\n" + content)
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
