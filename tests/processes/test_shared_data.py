"""Data shared among processes: the scores, the plan and the refitted weights are those of one process with all data."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bough
from bough.calibration import Data, Sums
from bough.calibration.sums import load_sums, save_sums
from tests.processes.spawned import in_processes

BUDGET = bough.Budget(params="60%")


def net():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)]
    return nn.Sequential(*layers).eval()


def batches(count=6):
    torch.manual_seed(1)
    return [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(count)]


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def shared(rank, world, all_batches):
    return Data(all_batches[rank::world], distributed=world > 1)


NAMES = ("wanda", "flap", "activation_mean", "apoz", "hrank", "thinet", "obs(relative=True)", "obs(relative=True, probes=2)")
WITH_LOSS = ("taylor", "fisher", "obd", "sensitivity", "masked_loss", "shapley")
PRUNE = {"importance": "obs(relative=True)", "allocation": "error"}


def scores_of(rank, world, all_batches, names=(*NAMES, *WITH_LOSS)):
    graph = bough.trace(net(), torch.zeros(2, 6))
    found = {}
    for name in names:
        scores = bough.score(graph, bough.importance.criterion(name, loss), shared(rank, world, all_batches))
        found[name] = scores, bough.plan(graph, scores, BUDGET).to_json()
    return found


def layer_scores_of(rank, world):
    torch.manual_seed(0)
    block = lambda: Block(nn.Linear(6, 8), nn.Linear(8, 6))  # noqa: E731 - a word for a long one
    graph = bough.trace(nn.Sequential(nn.Linear(6, 6), nn.Sequential(block(), block(), block())), torch.zeros(2, 6))
    data = shared(rank, world, batches())
    criteria = ("block_influence", bough.importance.LayerLoss(loss))
    return [bough.score(graph, criterion, data)["1"] for criterion in criteria]


class Block(nn.Module):
    def __init__(self, up, down):
        super().__init__()
        self.up, self.down = up, down

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def refitted(rank, world, all_batches, ridge):
    model = net()
    plan = bough.plan(graph := bough.trace(model, torch.zeros(2, 6)), bough.score(graph, "l2"), BUDGET)
    done = bough.refit(model, bough.cut(model, plan), plan, shared(rank, world, all_batches), ridge=ridge)
    return {n: t.numpy() for n, t in done.model.state_dict().items()}, [x.to_dict() for x in done.layers]


def pruned(rank, world, options):
    data = shared(rank, world, [x for x, _ in batches()])
    result = bough.prune(net(), torch.zeros(2, 6), BUDGET, data=data, **options)
    return result.plan.to_json(), {n: t.numpy() for n, t in result.model.state_dict().items()}


def wanda(rank, world, all_batches, shift=0.0):
    model = net()
    with torch.no_grad():
        model[0].weight += shift * rank
    return bough.score(bough.trace(model, torch.zeros(2, 6)), "wanda", shared(rank, world, all_batches))


class Local:
    """A criterion that does not add its sums over processes."""

    needs_data = True

    def __call__(self, graph, data):
        mean = np.mean([x.mean() for x, _ in data])
        return {g.name: np.full(g.size, mean) for g in graph.groups}


def local_scores(rank, world):
    return bough.score(bough.trace(net(), torch.zeros(2, 6)), Local(), shared(rank, world, batches()))


def recalibrated(rank, world):
    return bough.recalibrate(net(), shared(rank, world, batches()))


CALLS = {
    "scores": lambda world: (scores_of, (world, batches(), *[("wanda", NAMES[-1])][: world // 4])),
    "layers": lambda world: (layer_scores_of, (world,)),
    "refit": lambda world: (refitted, (world, batches(), None)),
    "refit with a ridge": lambda world: (refitted, (world, batches(), 0.1)),
    "prune": lambda world: (pruned, (world, PRUNE)),
    "few": lambda world: (wanda, (world, batches(world - 1))),
    "none": lambda world: (wanda, (world, [])),
    "refit with few": lambda world: (refitted, (world, batches(world - 1), None)),
    "other weights": lambda world: (wanda, (world, batches(), 1.0)),
    "local": lambda world: (local_scores, (world,)),
    "candidates": lambda world: (pruned, (world, {})),
    "recalibrate": lambda world: (recalibrated, (world,)),
}


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    """{name of a call: its results in all processes}, of 2 and of 4 processes."""
    world = request.param
    calls = [make(world) for make in CALLS.values()]
    results = in_processes(world, tmp_path_factory.mktemp("processes"), calls)
    return {"world": world, **dict(zip(CALLS, results, strict=True))}


def test_plans_are_those_of_one_process(found):
    """Scores differ by rounding of sums at most, and not at all between the processes."""
    for name, (scores, plan) in scores_of(0, 1, batches(), list(found["scores"][0])).items():
        for process in found["scores"]:
            assert process[name][1] == plan, name
            for group, values in scores.items():
                np.testing.assert_allclose(process[name][0][group], values, rtol=1e-5, atol=1e-9, err_msg=name)
                np.testing.assert_array_equal(process[name][0][group], found["scores"][0][name][0][group])


def test_scores_of_layers_are_those_of_one_process(found):
    for process in found["layers"]:
        np.testing.assert_allclose(process, layer_scores_of(0, 1), rtol=1e-6)


@pytest.mark.parametrize(("name", "ridge"), [("refit", None), ("refit with a ridge", 0.1)])
def test_refitted_weights_are_those_of_one_process(found, name, ridge):
    expected, layers = refitted(0, 1, batches(), ridge)
    for weights, told in found[name]:
        assert told == found[name][0][1]
        assert [x["ridge"] for x in told] == [x["ridge"] for x in layers]
        for parameter, value in expected.items():
            np.testing.assert_allclose(weights[parameter], value, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(weights[parameter], found[name][0][0][parameter])


def test_prune(found):
    plan, weights = pruned(0, 1, PRUNE)
    for process in found["prune"]:
        assert process[0] == plan
        assert all(np.allclose(process[1][n], w, rtol=1e-5, atol=1e-6) for n, w in weights.items())


def test_a_process_without_batches_adds_nothing(found):
    for process in found["few"]:
        np.testing.assert_allclose(process["0"], wanda(0, 1, batches(found["world"] - 1))["0"])


ERRORS = {
    "none": "the data gives no batches",
    "refit with few": "has no batch of the data: give each at least one, or use fewer",
    "other weights": "process 1 of {} differs from process 0 in the weights",
    "local": "process 1 of {} differs from process 0 in the scores of Local",
    "candidates": "takes one process: give importance= and allocation=",
    "recalibrate": "recalibrate takes no Data(distributed=True)",
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_the_same_in_every_process(found, name):
    assert len(set(found[name])) == 1
    assert found[name][0].startswith("PlanError: ")
    assert ERRORS[name].format(found["world"]) in found[name][0]


def test_without_a_process_group():
    with pytest.raises(bough.errors.PlanError, match=r"Data\(distributed=True\) needs a process group"):
        Data([], distributed=True)


def test_constants_are_kept_in_the_checkpoint_of_a_pass(tmp_path):
    sums, again = Sums(), Sums()
    sums.keep("weight", torch.ones(2))
    sums.plus("count", 3)
    save_sums(tmp_path / "sums", sums, net(), 5)
    assert load_sums(tmp_path / "sums", again, net()) == 5
    assert again.constants == {"weight"}
    assert float(again["count"]) == 3
