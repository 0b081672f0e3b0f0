"""A small problem to search, and a worker on it that can be killed."""

import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

import bough

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))


def build(width=8, depth=4):
    """An MLP of 4 inputs and 2 outputs."""
    torch.manual_seed(0)
    sizes = [4, *[width] * (depth - 1), 2]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


@torch.no_grad()
def closeness(model):
    """How little the outputs differ from those of the dense model."""
    return -float((model(X) - build()(X)).square().mean())


def searched(**options):
    """A search for closeness and few MACs; the defaults of the tests."""
    given = {"importance": "l2", "evaluate": closeness, **options}
    return bough.search(build(), X[:1], given.pop("evaluate"), **given)


def widths(model):
    return tuple(m.out_features for m in model if isinstance(m, nn.Linear))


def work(storage, trials, pause, log):
    """Be a worker of a study in which each candidate takes `pause` seconds; `log` gets a line when one begins."""
    Logged.log, Logged.pause = Path(log), pause
    searched(evaluate=Logged(), storage=storage, trials=trials, heartbeat=1)


class Logged:
    """An evaluation that writes down each model that it is given; the same class in every worker."""

    log, pause = Path("nowhere"), 0.0
    __name__ = "closeness"

    def __call__(self, model):
        if widths(model) != widths(build()) or self.log.exists():
            with open(self.log, "a") as file:
                file.write(f"{widths(model)}\n")
        time.sleep(self.pause)
        return closeness(model)

    def __repr__(self):
        return "Logged()"
