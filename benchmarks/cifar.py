"""CIFAR-10 and the folder of real data, as the benchmarks of accuracy need them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


def load_module(data: Path) -> ModuleType:
    """`load.py` of the folder that --data names."""
    file = data / "load.py"
    if not file.exists():
        raise SystemExit(f"{file} is missing: --data names the folder of real data and weights, with its load.py")
    spec = importlib.util.spec_from_file_location("load", file)
    assert spec is not None
    assert spec.loader is not None
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    return load


def images(array: np.ndarray, load: ModuleType) -> Tensor:
    """[N, H, W, 3] in bytes -> normalized [N, 3, H, W]."""
    return normalized(torch.from_numpy(array).permute(0, 3, 1, 2), load)


def normalized(x: Tensor, load: ModuleType) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (load.CIFAR10_MEAN, load.CIFAR10_STD))
    return ((x.float() / 255 - mean) / std).contiguous()


@torch.no_grad()
def predicted(model: nn.Module, x: Tensor) -> Tensor:
    size = 250 if x.shape[-1] < 64 else 16  # what of activations fits into caches
    here = next(model.parameters()).device
    return torch.cat([model.eval()(b.to(here)).argmax(1).cpu() for b in x.split(size)])


def test_images(load: ModuleType, count: int) -> tuple[Tensor, Tensor]:
    """Images and labels: `count` drawn of the 10,000, in a random order: their own is one of classes."""
    found, labels = load.cifar10("test")
    some = np.random.default_rng(0).permutation(len(found))[:count]
    return images(found[some], load), torch.from_numpy(labels[some])


class Drawn(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (input, label) that are drawn a batch at a time, by `__getitems__`."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.__getitems__([index])
        return x[0], y[0]


class Augmented(Drawn):
    """Training images, each cropped at random from itself with 4 pixels around it, and mirrored half of the time.

    `pasted`: the share of the batches where each image has a square of another image in it (CutMix, Yun et al., 2019);
    the label stays that of the image around it.
    """

    def __init__(self, load: ModuleType, count: int | None = None, pasted: float = 0.0) -> None:
        found, labels = load.cifar10("train")
        self.load, self.labels, self.pasted = load, torch.from_numpy(labels[:count]), pasted
        self.padded = nn.functional.pad(torch.from_numpy(found[:count]).permute(0, 3, 1, 2), (4, 4, 4, 4))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        at = torch.as_tensor(indices)
        x = self.take(at, *self.draw(len(at)))
        if self.pasted and torch.rand(()) < self.pasted:
            x = paste(x, x[torch.randperm(len(at))], squares(1))
        return x, self.labels[at]

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Rows and columns [n, 32] of crops at random."""
        down, right = torch.randint(0, 9, (2, n, 1)) + torch.arange(32)
        return down, torch.where(torch.rand(n, 1) < 0.5, right, right.flip(1))

    def take(self, at: Tensor, down: Tensor, right: Tensor) -> Tensor:
        """Those crops of images `at` [n] -> [n, 3, 32, 32]."""
        n = len(at)
        x = self.padded[at.view(n, 1, 1), :, down.view(n, 32, 1), right.view(n, 1, 32)].permute(0, 3, 1, 2)
        return normalized(x, self.load).contiguous(memory_format=torch.channels_last)


def squares(n: int) -> Tensor:
    """Places in images at random, [n, 3]: side, top and left; their areas are uniform in [0, 1) of the image's."""
    side = (32 * torch.rand(n).sqrt()).long()
    return torch.stack([side, *(torch.rand(2, n) * (33 - side)).long()], 1)


def paste(x: Tensor, other: Tensor, places: Tensor) -> Tensor:
    """`x` [N, 3, 32, 32] with the squares [N or 1, 3] of `other` at their own places."""
    side, top, left = (v.view(-1, 1) for v in places.T)
    at = torch.arange(32)
    rows, columns = ((at >= start) & (at < start + side) for start in (top, left))
    return torch.where((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), other, x)


def batches(dataset: Dataset[Any], size: int = 128) -> DataLoader[Any]:
    """A loader that takes batches from the dataset as they are."""
    return DataLoader(dataset, size, shuffle=True, drop_last=True, collate_fn=tuple)
