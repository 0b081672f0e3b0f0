"""Random numbers that depend on where a run is, and not on how it came there.

The draws of a sample are a function of (seed, epoch, number of the sample), those of a step of (seed, epoch, batch,
process). So a resumed run needs no saved generator, and neither worker processes, nor batches fetched ahead, nor how many
processes share a batch change what is drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate


def seed_all(*where: object) -> None:
    """Seeds Python's, NumPy's and torch's generators by a hash of `where`."""
    seed = seed_of(*where)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of(*where: object) -> int:
    """A number of 32 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(where).encode(), digest_size=4).digest(), "little")


@contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the global generators back at the end."""
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class Seeded(Dataset[Any]):
    """A dataset whose samples are drawn (augmented) by (seed, epoch, number of the sample) alone; collating, too."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        seed_all(self.seed, "sample", self.epoch, index)
        return self.dataset[index]

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        if hasattr(self.dataset, "__getitems__"):
            seed_all(self.seed, "samples", self.epoch, indices[0])
            return list(self.dataset.__getitems__(indices))
        return [self[i] for i in indices]


def seeded(loader: DataLoader[Any], seed: int) -> DataLoader[Any]:
    """The same loader over a `Seeded` dataset; streams, and tensors that have nothing to draw, stay as they are."""
    plain = type(loader.dataset) is TensorDataset and loader.collate_fn is default_collate
    if isinstance(loader.dataset, (IterableDataset, Seeded)) or plain:
        return loader
    return DataLoader(
        Seeded(loader.dataset, seed),
        batch_sampler=loader.batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )  # fmt: skip  (workers that persist would stay in the first epoch)


def start_epoch(loader: DataLoader[Any], sampler: Any, seed: int, epoch: int) -> None:
    """Makes the next pass over a loader (its order, its draws) that of `epoch`."""
    for holder in (loader, loader.dataset, sampler):
        if isinstance(holder, Seeded):
            holder.epoch = epoch
        elif hasattr(holder, "set_epoch"):
            holder.set_epoch(epoch)
    seed_all(seed, "epoch", epoch)
    if hasattr(sampler, "generator"):
        sampler.generator.manual_seed(seed_of(seed, "order", epoch))
