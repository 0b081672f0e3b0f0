"""Commands that torchrun or accelerate launch starts in several processes: data is shared, and process 0 writes."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Any

import typer
from torch import distributed

from bough.calibration import Data
from bough.errors import PlanError

Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="share the batches of the data among the processes that torchrun or accelerate launch started: process r of n "
        "takes batches r, r + n, r + 2n, ...; process 0 writes and prints",
    ),
]


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a command; `rank` is the number of this one."""

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, data: Data | None) -> Data | None:
        """Return this process's share of data that every process has whole."""
        if self.count == 1 or data is None or data.distributed:
            return data
        return replace(data, batches=_Share(data.batches, self.rank, self.count), distributed=True)


def join_processes(given: bool) -> Processes:
    """Return the processes that run the command, connected by gloo; one process unless `given`, the flag --distributed.

    Raises:
        PlanError: the flag without processes to join, or several processes without the flag.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if not given:
        if count > 1:
            raise PlanError(
                f"{count} processes were started, and each would do all the work and write --out: give --distributed"
            )
        return Processes()
    if "RANK" not in os.environ:
        raise PlanError("--distributed joins the processes of a launcher: torchrun --nproc-per-node 2 -m bough ...")
    distributed.init_process_group("gloo")
    atexit.register(distributed.destroy_process_group)
    return Processes(distributed.get_rank(), distributed.get_world_size())


class _Share:
    """Every n-th of some batches, from number r on."""

    def __init__(self, batches: Iterable[Any], rank: int, count: int) -> None:
        self._batches, self._rank, self._count = batches, rank, count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._batches), self._rank, None, self._count)
