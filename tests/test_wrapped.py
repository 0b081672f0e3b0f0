"""Wrappers of torch around a model: every step works through them, and names are those of the model inside."""

import pytest
import torch
from torch import distributed, nn

import bough


@pytest.fixture
def process_group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "two of them": lambda net: torch.optim.swa_utils.AveragedModel(nn.DataParallel(net)),
}
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def built():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)).eval()


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.usefixtures("process_group")
def test_every_step_works_through_a_wrapper(name):
    model, data = WRAPPERS[name](built()).eval(), [torch.randn(16, 8), torch.randn(16, 8)]
    result = bough.prune(model, X, bough.Budget(params="50%"), refit=False)
    bare = bough.prune(built(), X, bough.Budget(params="50%"), refit=False)
    assert result.report.equal
    assert type(result.model) is type(model)
    assert result.plan.kept == bare.plan.kept
    assert torch.equal(result.model(X), bare.model(X))
    masked = bough.mask(model, result.plan)
    torch.testing.assert_close(masked(X), result.model(X))
    refitted = bough.refit(model, result.model, result.plan, data).model
    torch.testing.assert_close(refitted(X), bough.refit(built(), bare.model, bare.plan, data).model(X))
    scores = bough.score(bough.trace(model, X), bough.importance.OBS(), data)
    assert scores.keys() == bough.score(bough.trace(built(), X), bough.importance.OBS(), data).keys()
