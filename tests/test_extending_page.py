"""The examples of docs/extending.md run, and do what the page says of them."""

import numpy as np
import pytest
import torch

import bough
from bough import importance
from tests import pages


@pytest.fixture(scope="module")
def names():
    pytest.importorskip("accelerate")
    return pages.run("extending.md")


def test_criteria(names):
    graph, model = names["graph"], names["model"]
    weight, bias, reader = model[0].weight, model[0].bias, model[2].weight
    above = [(t.abs() - 0.1).clamp_min(0) for t in (weight, bias, reader)]
    by_hand = above[0].sum(1) + above[1] + above[2].sum(0)
    np.testing.assert_allclose(names["scores"]["0"], by_hand.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(names["spread"]["0"], model[0](names["x"]).var(0).detach().numpy(), rtol=1e-4)
    wanted = {g.name: g.size for g in graph.groups}
    for scores in (names["scores"], names["spread"], names["sensitive"], bough.score(graph, names["Power"](p=3))):
        assert {n: len(v) for n, v in scores.items()} == wanted


def test_a_criterion_on_data_is_given_any_form_of_it(names):
    batches, graph = names["batches"], names["graph"]
    data = importance.Data([{"a": x} for x, _ in batches], forward=lambda model, batch: model(batch["a"]), progress=False)
    for other in (data, torch.utils.data.TensorDataset(names["x"])):
        assert np.allclose(bough.score(graph, names["Spread"](), other)["0"], names["spread"]["0"])


def test_an_interrupted_pass_of_a_criterion_goes_on(names, tmp_path):
    graph, batches, cross_entropy = names["graph"], names["batches"], torch.nn.functional.cross_entropy
    calls = []

    def loss(output, batch):
        calls.append(1)
        if len(calls) == 4:
            raise InterruptedError
        return cross_entropy(output, batch[1])

    data = importance.Data(batches, checkpoint=tmp_path, every=1)
    with pytest.raises(InterruptedError):
        bough.score(graph, names["Sensitive"](loss), data)
    found = bough.score(graph, names["Sensitive"](loss), data)
    assert len(calls) == 5
    assert all(np.allclose(found[n], names["sensitive"][n]) for n in found)


def test_allocators(names):
    plan, spared = names["plan"], names["spared"]
    assert plan.notes == ("one step in turn",)
    (a, m), (b, n) = plan.groups.values()
    assert abs((m - a) - (n - b)) <= 1
    assert plan.cost.params <= 0.5 * plan.original.params
    greedy = bough.plan(names["graph"], names["scores"], names["half"], allocation=bough.allocation.Greedy(relative=False))
    assert spared.groups["2"][0] > greedy.groups["2"][0]


def test_a_recovery(names):
    model, plan, x = names["model"], names["plan"], names["x"]
    small = bough.cut(model, plan)
    names["center_outputs"](model, small, names["batches"])
    assert torch.allclose(small(x).mean(0), model(x).mean(0), atol=1e-5)
    assert names["done"].steps == 4


def test_names_in_a_comparison(names):
    rows = names["found"].rows
    assert {r.criterion for r in rows} == {"dense", "excess", "spread", "l1", "random"}
    assert {r.allocation for r in rows[1:]} == {"greedy", "in turn"}
    assert names["found"].best("half").good
    assert not [r.error for r in rows if r.error]
