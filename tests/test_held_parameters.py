"""An optimizer that does not hold the parameters of the model that is trained is refused, wherever one is given."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import TensorDataset

import bough
from bough import recovery
from bough.errors import ArgumentError, TrainingError

pytest.importorskip("accelerate")

X = torch.randn(32, 4)
DATA = TensorDataset(X, (X[:, 0] > 0).long())
HALF = bough.Budget(params="50%")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def graph_of(model):
    return bough.trace(model, X[:2])


ATTACHED = {
    "lasso": lambda model: recovery.regularize.GroupLasso(graph_of(model), 0.1),
    "learning": lambda model: recovery.regularize.SparseLearning(graph_of(model)),
    "growing": lambda model: recovery.regularize.GrowingPenalty(graph_of(model)),
    "zeroing": lambda model: recovery.regularize.ProgressiveZeroing(graph_of(model), HALF, steps=1, periods=1),
    "masks": lambda model: recovery.Sparse(model, {"0.weight": torch.ones(8, 4, dtype=torch.bool)}),
    "ticket": lambda model: recovery.Sparse(model, {}),
}
GIVEN = {
    "finetune": lambda small, model, optimizer: bough.finetune(small, DATA, optimizer=optimizer),
    "distill": lambda small, model, optimizer: bough.distill(small, model, DATA, optimizer=optimizer),
    "iterate": lambda small, model, optimizer: bough.iterate(small, X[:2], HALF, print, steps=1, optimizer=optimizer),
    **{n: lambda small, model, optimizer, n=n: ATTACHED[n](small).attach(optimizer) for n in ATTACHED},
}


@pytest.mark.parametrize("name", GIVEN)
def test_the_optimizer_of_the_original_is_refused(name):
    model = net()
    small = bough.prune(model, X[:2], HALF).model
    small = net() if name in ATTACHED else small
    before = [p.clone() for p in small.parameters()]
    with pytest.raises(TrainingError, match=r"the optimizer \(AdamW\) holds no parameter .*bough\.transfer_optimizer"):
        GIVEN[name](small, model, AdamW(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


@pytest.mark.parametrize("name", [n for n in GIVEN if n != "iterate"])
def test_one_that_holds_some_of_them_is_taken(name):
    model = net()
    small = net()
    GIVEN[name](small, model, SGD([*model[0].parameters(), *small[2].parameters()], 0.1))


def test_one_carried_through_the_cut_trains():
    model = net()
    optimizer = AdamW(model.parameters(), 0.1)
    result = bough.prune(model, X[:2], HALF)
    bough.transfer_optimizer(optimizer, result.plan)
    before = result.model[0].weight.clone()
    bough.finetune(result.model, DATA, optimizer=optimizer)
    assert not torch.equal(before, result.model[0].weight)


def test_a_teacher_s_optimizer_that_holds_the_projections_is_refused():
    """It would train how students are compared, and not the student."""
    model, student = net(), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    match = recovery.Features(graph_of(model), ["1"], student=graph_of(student))
    distillation = recovery.Distillation(match=match)
    with pytest.raises(TrainingError, match="holds no parameter"):
        bough.distill(
            student, model, DATA, distillation=distillation, optimizer=SGD([*model.parameters(), *match.parameters()], 0.1)
        )


@pytest.mark.parametrize("name", ATTACHED)
def test_what_is_no_optimizer_is_told(name):
    for wrong in (None, "adam", net(), torch.optim.lr_scheduler.StepLR(SGD(net().parameters(), 0.1), 1)):
        with pytest.raises((ArgumentError, TrainingError), match="optimizer"):
            ATTACHED[name](net()).attach(wrong)
