"""Training data in any form that `score` takes, as torch's: a DataLoader or a Dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bough.calibration import Data
from bough.errors import TrainingError
from bough.tracing.tree import tensors_within


class Batches(IterableDataset[Any]):
    """An iterable of batches as a dataset: its items are whole batches, in the order given."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self._number = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def as_torch(data: Any) -> DataLoader[Any] | Dataset[Any]:
    """Return a DataLoader or Dataset as it is, and an iterable of batches as a DataLoader of them.

    Raises:
        TrainingError: something else, an iterator (which can be gone through once only), or a list of what is no batch.
    """
    data = data.batches if isinstance(data, Data) else data
    if isinstance(data, (DataLoader, Dataset)):
        return data
    iterable = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if not iterable or isinstance(data, (str, bytes, Mapping, Tensor)):
        raise TrainingError(f"train is a {type(data).__name__}: give a torch Dataset, a DataLoader, or an iterable of batches")
    if isinstance(data, Iterator):
        raise TrainingError("train can be gone through once only: give a torch Dataset, a DataLoader, or a list of batches")
    if isinstance(data, (list, tuple)) and data and next(tensors_within(data[0]), None) is None:
        raise TrainingError(
            f"train is a {type(data).__name__} of {type(data[0]).__name__}: give a torch Dataset, a DataLoader, or an iterable "
            "of batches that hold tensors"
        )
    return DataLoader(Batches(data), batch_size=None, collate_fn=_same)


def _same(batch: Any) -> Any:
    return batch
