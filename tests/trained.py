"""What tests of training share: a net, noisy samples, and runs that end before their time."""

import torch
from torch import nn
from torch.utils.data import (
    Dataset,
)


def net(width: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 3),
    )  # fmt: skip


class Noisy(Dataset):
    """Samples with noise from the global generators, as augmentations draw it."""

    def __init__(self, n: int = 50) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(n, 4, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0.1 * torch.randn(4), (self.x[i].sum() > 0).long()


def score(model: nn.Module) -> float:
    data = Noisy()
    return float((model(data.x).argmax(1) == (data.x.sum(1) > 0)).float().mean())


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(Exception):
    pass


def kill_at(*steps):
    """A callback that ends the run in each of these steps, the first time it gets there."""
    left = list(steps)

    def callback(line):
        if line["step"] in left:
            left.remove(line["step"])
            raise Killed

    return callback


def stopped_at(step):
    def stop(line):
        if line["step"] == step:
            raise KeyboardInterrupt

    return stop
