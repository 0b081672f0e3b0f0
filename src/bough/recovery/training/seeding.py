"""Random numbers that depend on the position in a run alone, not on how the run reached that position.

The draws of a sample are a function of (seed, epoch, index of the sample), those of a step of (seed, epoch, batch, process).
So a resumed run needs no saved generator, and worker processes, prefetching and the number of processes that share a batch
do not change what is drawn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate


def seed_all(*position: object) -> None:
    """Seed the generators of Python, NumPy and torch by a hash of `position`."""
    seed = stable_seed(*position)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def stable_seed(*position: object) -> int:
    """Return a 32-bit hash of `position`, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(position).encode(), digest_size=4).digest(), "little")


class SeededDataset(Dataset[Any]):
    """A dataset whose samples and collation draw from generators seeded by (seed, epoch, index of the sample)."""

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


def seed_samples(loader: DataLoader[Any], seed: int) -> DataLoader[Any]:
    """Return the loader over a `SeededDataset`; streams, and tensors without augmentation, are returned as they are."""
    draws_nothing = type(loader.dataset) is TensorDataset and loader.collate_fn is default_collate
    if isinstance(loader.dataset, (IterableDataset, SeededDataset)) or draws_nothing:
        return loader
    return DataLoader(
        SeededDataset(loader.dataset, seed),
        batch_sampler=loader.batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )  # fmt: skip  (persistent workers would keep the dataset of the first epoch)


def start_epoch(loader: DataLoader[Any], sampler: Any, seed: int, epoch: int) -> None:
    """Set the order and the random draws of the next pass over a loader to those of `epoch`."""
    for holder in (loader, loader.dataset, sampler):
        if isinstance(holder, SeededDataset):
            holder.epoch = epoch
        elif hasattr(holder, "set_epoch"):
            holder.set_epoch(epoch)
    seed_all(seed, "epoch", epoch)
    if hasattr(sampler, "generator"):
        sampler.generator.manual_seed(stable_seed(seed, "order", epoch))
