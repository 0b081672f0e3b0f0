"""The stream of ops does not depend on what was traced before."""

import torch
from torch import nn

import bough
from bough.tracing.capture import stream


def test_a_dispatcher_may_be_the_first_function_of_torch_that_is_seen(monkeypatch):
    """`F.max_pool2d` says that it is of torch.nn.functional, and its code stands elsewhere."""
    monkeypatch.setattr(stream, "_bodies", {})
    monkeypatch.setattr(stream, "_namespaces", {})
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 2))
    graph = bough.trace(model, torch.randn(2, 3, 9, 9))
    assert [g.size for g in graph.groups] == [6]
