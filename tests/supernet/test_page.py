"""The examples of docs/supernets.md run, and what they show is so."""

import pytest

from tests import pages

pytest.importorskip("accelerate")


def test_the_examples():
    names = pages.run("supernets.md")
    net, table = names["net"], names["table"]
    assert all(check.met for check in net.profile(names["budgets"].values()).budgets)
    assert names["half"].dropped == ("1.2",)
    assert len(names["done"].epochs) == 12
    assert names["accuracy"](names["small"]) > 0.5
    assert table["watch"].cost.macs <= 0.25 * net.graph.cost().macs
    assert sum(p.numel() for p in names["watch"].parameters()) == table["watch"].cost.params
