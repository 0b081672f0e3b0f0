"""Training data in any form that `score` accepts, as a torch DataLoader or Dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bough.calibration import Data
from bough.errors import TrainingError
from bough.recovery.training.options import Training
from bough.recovery.training.seeding import seed_samples
from bough.tracing.capture.tree import tensors_within


class BatchDataset(IterableDataset[Any]):
    """A dataset whose items are whole batches, in the given order.

    Args:
        batches: iterable of batches that can be iterated over several times.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self._length = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def as_torch_data(data: Any) -> DataLoader[Any] | Dataset[Any]:
    """Return a DataLoader or Dataset as it is, a sequence of samples as a Dataset, and an iterable of batches as a DataLoader.

    A sequence holds samples if its first item holds a number or a tensor without dims, as a label is: a batch has none.

    Raises:
        TrainingError: `data` is something else, a one-shot iterator, or a list whose first item holds no tensor.
    """
    data = data.batches if isinstance(data, Data) else data
    if isinstance(data, (DataLoader, Dataset)):
        return data
    iterable = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if not iterable or isinstance(data, (str, bytes, Mapping, Tensor)):
        raise TrainingError(f"train is a {type(data).__name__}: give a torch Dataset, a DataLoader, or an iterable of batches")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and len(data) and _is_sample(data[0]):
        samples: Dataset[Any] = data
        return samples
    if isinstance(data, Iterator):
        raise TrainingError("train can be gone through once only: give a torch Dataset, a DataLoader, or a list of batches")
    if isinstance(data, (list, tuple)) and data and next(tensors_within(data[0]), None) is None:
        raise TrainingError(
            f"train is a {type(data).__name__} of {type(data[0]).__name__}: give a torch Dataset, a DataLoader, or an iterable "
            "of batches that hold tensors"
        )
    return DataLoader(BatchDataset(data), batch_size=None, collate_fn=_identity)


def _is_sample(item: Any) -> bool:
    """Whether an item of a sequence is one sample: it holds a tensor without dims, or tensors and a number beside them."""
    leaves = [*_leaves(item)]
    numbers = any(isinstance(x, Number) and not isinstance(x, bool) for x in leaves)
    arrays = [x for x in leaves if isinstance(x, (Tensor, np.ndarray))]
    return any(x.ndim == 0 for x in arrays) or (numbers and bool(arrays))


def _leaves(item: Any) -> Iterator[Any]:
    """Yield what nested mappings, tuples and lists hold."""
    if isinstance(item, Mapping):
        item = tuple(item.values())
    if isinstance(item, (tuple, list)):
        for part in item:
            yield from _leaves(part)
    else:
        yield item


def training_loader(data: Any, training: Training) -> tuple[DataLoader[Any], int]:
    """Return a loader of the training data and the number of its batches.

    Args:
        data: as `train` of `finetune`.
        training: gives the batch size of a dataset, and the seed of its samples.

    Raises:
        TrainingError: the data is empty, its length is unknown, or accelerate cannot handle it.
    """
    data = as_torch_data(data)
    if not isinstance(data, DataLoader):
        if not isinstance(data, IterableDataset) and hasattr(data, "__len__") and not len(data):
            raise TrainingError("train is empty: the dataset has no samples")
        data = DataLoader(data, training.batch_size, shuffle=not isinstance(data, IterableDataset))
    if data.batch_sampler is None and not isinstance(data.dataset, IterableDataset):
        raise TrainingError("train has batch_size=None, which accelerate can not take: give the DataLoader a batch_sampler")
    try:
        batches = len(data)
    except TypeError:
        raise TrainingError("the length of train is unknown: its dataset needs __len__, for the schedule") from None
    if not batches:
        raise TrainingError("train is empty: it gives no batch")
    return seed_samples(data, training.seed), batches


def _identity(batch: Any) -> Any:
    """Collate function of a DataLoader whose dataset gives whole batches; a named function can be pickled for workers."""
    return batch
