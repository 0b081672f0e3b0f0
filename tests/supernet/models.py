"""Models and data that the tests of supernets share."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import bough


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Linear(8, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.norm(self.up(x))))


class Residual(nn.Module):
    """Blocks that can be left out, with batch norms."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList([Block(6) for _ in range(3)])
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def residual():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual()
        model(torch.randn(64, 4))  # statistics that are not those of a new batch norm
    return model.eval()


def inputs(samples=8):
    return torch.randn(samples, 4, generator=torch.Generator().manual_seed(1))


def dataset(samples=96):
    x = inputs(samples)
    return TensorDataset(x, x[:, :3].argmax(1))


def accuracy(model):
    x, y = dataset().tensors
    return float((model(x).argmax(1) == y).float().mean())


def nested(**options):
    return bough.supernet(residual(), inputs(), **{"depth": True, **options})
