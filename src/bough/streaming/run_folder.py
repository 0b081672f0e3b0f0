"""The folder of a run, inside the folder that it makes: complete files wait there until all of them are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from bough.errors import CheckpointError, PlanError, WriteError
from bough.exporting.contents import PLAN, forget_pretrained
from bough.exporting.pretrained import CONFIG, copy_companions, plan_text
from bough.planning import Plan
from bough.storage import file_digest, make_folder, write_text
from bough.storage.atomic import explained, sync
from bough.storage.lock import LOCK
from bough.streaming.pieces import Piece, Pieces
from bough.streaming.shards import INDEX, Shards
from bough.streaming.weights import ReductionLog
from bough.streaming.writing import write_cut_file

_NAME, _JOB, _LOG, _DIGESTS = ".unfinished", "job.json", "reductions.log", ".sha256"
_RESERVE = 1 << 24  # bytes that are left free for the config, the plan and the file system


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run keeps its plan and the files that are complete.

    Attributes:
        place: the folder that the run makes.
        source: the folder of the original.
        job: digest of the original's files and the run's arguments.
        shards: the original's files.
    """

    place: Path
    source: Path
    job: str
    shards: Shards

    @staticmethod
    def of(place: Path, source: Path, shards: Shards, arguments: Sequence[str]) -> RunFolder:
        """Return the folder of a run with these arguments."""
        digest = hashlib.sha256((source / CONFIG).read_bytes() if (source / CONFIG).is_file() else b"")
        for name in sorted(shards.headers):
            about = (source / name).stat()
            digest.update(f"{name} {about.st_size} {about.st_mtime_ns}\n".encode())
        digest.update("\n".join(arguments).encode())
        return RunFolder(place, source, digest.hexdigest(), shards)

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.place / _NAME

    @property
    def refitted(self) -> Path:
        """The folder of refitted tensors."""
        return self.folder / "refit"

    def exists(self) -> bool:
        """Return whether a run was begun here and has not ended."""
        return (self.folder / _JOB).is_file()

    def begin(self, overwrite: bool) -> bool:
        """Begin or continue the run; return whether it is continued.

        What is left of a run of other arguments is deleted if that run did not get as far as a plan.

        Raises:
            CheckpointError: there is an unfinished run of other arguments, which has a plan.
            WriteError: the folder can not be written.
        """
        if self.exists():
            if self._recorded() == self.job:
                return True
            if not overwrite and self.plan() is not None:
                raise CheckpointError(
                    f"{self.place} has an unfinished run with other arguments or of other files: repeat that call to finish "
                    "it, or start again with overwrite=True"
                )
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
        make_folder(self.folder)
        write_text(self.folder / _JOB, json.dumps({"job": self.job}))
        return False

    def _recorded(self) -> str | None:
        try:
            return str(json.loads((self.folder / _JOB).read_text(encoding="utf-8"))["job"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def log(self) -> ReductionLog:
        """Return the log of reductions."""
        return ReductionLog(self.folder / _LOG)

    def plan(self) -> Plan | None:
        """Return the plan that an earlier run made; None if there is none."""
        try:
            return Plan.from_json((self.folder / PLAN).read_text(encoding="utf-8"))
        except (OSError, PlanError):
            return None

    def forget(self) -> None:
        """Delete what the run has kept, unless it got as far as a plan."""
        if self.plan() is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def keep_plan(self, plan: Plan) -> None:
        """Keep the plan for a run that continues this one."""
        write_text(self.folder / PLAN, plan.to_json())

    def has(self, file: str) -> bool:
        """Return whether a file is complete."""
        return self._digest(file).is_file() and any((folder / file).is_file() for folder in (self.folder, self.place))

    def _digest(self, file: str) -> Path:
        return self.folder / f"{file}{_DIGESTS}"

    def check_space(self, size: int) -> None:
        """Raise WriteError if the disk has no room for so many bytes."""
        free = shutil.disk_usage(self.folder).free
        if size + _RESERVE > free:
            raise WriteError(
                f"{self.place} can not be written: the files take {size + _RESERVE:,} bytes, and {free:,} are free on the "
                "disk. Make room, and repeat the call to continue"
            )

    def write(self, file: str, pieces: Sequence[Piece], metadata: dict[str, str], on_read: Callable[[int], object]) -> None:
        """Write one cut file."""
        digest = write_cut_file(self.source / file, self.folder / file, pieces, metadata, on_read)
        write_text(self._digest(file), digest)

    def finish(self, plan: Plan, small: nn.Module, pieces: Pieces) -> None:
        """Put all files in place: the config and the plan last, so that no part looks whole.

        Raises:
            WriteError: a file can not be written.
        """
        digests = {f: self._digest(f).read_text(encoding="utf-8") for f in pieces.by_file}
        written = self.folder / "files"
        make_folder(written)
        with explained(written):
            small.config.save_pretrained(written)  # type: ignore[union-attr, operator]
        self._write_index(written, pieces)
        _keep_generation_config(self.source, written)
        copy_companions(self.source, written)
        for path in sorted(written.iterdir()):
            sync(path)
            digests[path.name] = file_digest(path)
        text = plan_text(plan, digests, training=False)
        if not self._finished(text):
            self._move(written, pieces)
            write_text(self.place / PLAN, text)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _finished(self, plan: str) -> bool:
        """Return whether an earlier run put all files in place, the plan last."""
        path = self.place / PLAN
        return path.is_file() and path.read_text(encoding="utf-8") == plan

    def _move(self, written: Path, pieces: Pieces) -> None:
        forget_pretrained(self.place)
        for name in (PLAN, CONFIG):
            (self.place / name).unlink(missing_ok=True)
        names = [*pieces.by_file, *(p.name for p in written.iterdir() if p.name != CONFIG), CONFIG]
        for name in names:
            for origin in (self.folder / name, written / name):
                if origin.is_file():
                    with explained(self.place / name):
                        os.replace(origin, self.place / name)

    def _write_index(self, folder: Path, pieces: Pieces) -> None:
        if self.shards.metadata is None:
            return
        names = {p.name: file for file, some in pieces.by_file.items() for p in some}
        metadata = {**self.shards.metadata, "total_size": pieces.size}
        if "total_parameters" in metadata:
            metadata["total_parameters"] = sum(
                p.size // p.entry.dtype.itemsize for some in pieces.by_file.values() for p in some
            )
        write_text(folder / INDEX, json.dumps({"metadata": metadata, "weight_map": names}, indent=2, sort_keys=True) + "\n")


def _keep_generation_config(source: Path, folder: Path) -> None:
    name = "generation_config.json"
    if (source / name).is_file():
        with explained(folder / name):
            shutil.copyfile(source / name, folder / name)
