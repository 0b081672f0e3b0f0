"""What `prune` does where the criterion, the allocation and the refit are left open."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bough
from benchmarks.defaults import RESULTS, table
from bough.defaults import WITH_DATA, WITHOUT_DATA, candidates
from bough.defaults.discrepancy import discrepancy
from bough.errors import PlanError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4)).eval()


X = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
HALF = bough.Budget(macs="50%")


def error(model, small):
    with torch.no_grad():
        return float((model(X) - small(X)).square().mean())


def test_with_data_the_default_is_as_good_as_the_best_candidate_by_hand():
    model = net()
    result = bough.prune(model, X[:2], HALF, data=X.split(32))
    graph = bough.trace(model, X[:2])
    by_hand = []
    for candidate in WITH_DATA:
        scores = bough.score(graph, candidate.importance, X.split(32))
        plan = bough.plan(graph, scores, HALF, allocation=candidate.allocation)
        by_hand.append(error(model, bough.refit(model, bough.cut(model, plan), plan, X.split(32)).model))
    assert error(model, result.model) <= 1.05 * min(by_hand)
    assert result.refit is not None
    assert result.choice.refit
    assert len(result.choice.trials) == len(WITH_DATA)
    best = min(result.choice.trials, key=lambda t: t.discrepancy)
    assert (result.choice.importance, result.choice.allocation) == (best.importance, best.allocation)


@pytest.mark.parametrize("data", [[], iter([]), DataLoader([], batch_size=2)], ids=lambda d: type(d).__name__)
def test_data_without_batches_is_an_error(data):
    with pytest.raises(PlanError, match=r"^the data gives no batches"):
        bough.prune(net(), X[:2], HALF, data=data)


class Residual(nn.Module):
    """A stream of 16 units that five layers read, with wide layers beside it that can lose units at no cost."""

    def __init__(self, needed):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(8, 16), nn.Linear(16, 4)
        self.up = nn.ModuleList(nn.Linear(16, 64) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(64, 16) for _ in range(4))
        with torch.no_grad():
            for down in self.down:
                down.weight[:, needed:] = 0

    def forward(self, x):
        x = self.enter(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return self.leave(x)


@pytest.mark.parametrize("needed", [24, 64])
def test_groups_that_many_layers_read_are_tried_whole_and_left_whole_where_that_is_better(needed):
    model = Residual(needed).eval()
    result = bough.prune(model, X[:2], HALF, data=X.split(32), allocation="uniform")  # which alone would cut the stream
    *open_to, again = trials = result.choice.trials
    assert [t.whole for t in trials] == [(), (), ("enter",)]
    assert again.importance == min(open_to, key=lambda t: t.discrepancy).importance
    better = again.discrepancy < min(t.discrepancy for t in open_to)
    assert result.choice.whole == (("enter",) if better else ())
    assert (result.plan.groups["enter"][0] == 16) == better == ("left whole" in str(result.choice).splitlines()[0])
    if needed == 24:  # 40 units of each wide layer cost nothing
        assert better


def test_data_lets_the_default_lose_far_less():
    model = net()
    with_data, without = (bough.prune(model, X[:2], HALF, data=d) for d in (X.split(32), None))
    assert error(model, with_data.model) < 0.3 * error(model, without.model)
    assert without.refit is None
    assert "data=batches" in str(without.choice)
    assert with_data.choice.notes == ()


def test_batch_norms_stand_in_for_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4))
    model[1].momentum = None
    with torch.no_grad():
        model.train()(X)
    model.eval()
    result = bough.prune(model, X[:2], HALF)
    plain = bough.prune(model, X[:2], HALF, refit=False)
    assert "synthetic inputs" in result.choice.data
    assert result.choice.refit
    assert "data=batches" in str(result)
    assert plain.choice.data == ""
    assert plain.refit is None
    assert error(model, result.model) < 0.5 * error(model, plain.model)


def test_what_is_given_wins():
    model, data = net(), X.split(32)
    plain = bough.prune(model, X[:2], HALF, data=data, refit=False)
    assert plain.refit is None
    assert not plain.choice.refit
    assert all(torch.isin(plain.model[0].bias, model[0].bias))  # only sliced
    chosen = bough.prune(model, X[:2], HALF, data=data, importance="l2")
    assert chosen.choice.importance == repr(bough.importance.Magnitude(p=2))
    assert chosen.refit is not None
    assert {t.allocation for t in chosen.choice.trials} == {"global", "uniform"}
    fixed = bough.prune(model, X[:2], HALF, importance="l1", allocation="uniform")
    assert fixed.choice.trials == ()
    assert fixed.choice.allocation == "uniform"
    assert fixed.refit is None
    errors = bough.prune(model, X[:2], HALF, data=data, importance=bough.importance.OBS(relative=True))
    assert errors.choice.allocation == "error"


def test_a_whole_loader_is_sampled_and_said():
    model = net()
    many = DataLoader(TensorDataset(X.repeat(6, 1), torch.zeros(1536)), batch_size=128, shuffle=True)
    result = bough.prune(model, X[:2], HALF, data=many)
    assert result.choice.data == "the first 1,024 samples of the data"
    once = bough.prune(model, X[:2], HALF, data=(x for x in X.split(64)))
    assert once.choice.data == "256 samples"
    assert once.refit is not None


def test_a_candidate_that_fails_is_told_and_the_others_go_on():
    class Rounded(nn.Module):  # nothing that it returns has a gradient, which the first candidate needs
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            return self.inner(x).detach()

    result = bough.prune(Rounded().eval(), X[:2], HALF, data=X.split(32))
    failed = [t for t in result.choice.trials if t.discrepancy is None]
    assert [t.importance for t in failed] == [WITH_DATA[0].importance]
    assert "gradient" in failed[0].failure
    assert result.choice.importance == "group"


def test_where_nothing_can_be_refitted_it_is_said():
    model = net()
    result = bough.prune(model, X[:2], bough.Budget(macs="100%"), data=X.split(32))
    assert result.refit is None
    assert "not refitted" in str(result.choice)
    with pytest.raises(PlanError):
        bough.prune(model, X[:2], bough.Budget(macs="100%"), data=X.split(32), refit=True)


def test_candidates_agree_with_what_is_given():
    assert candidates(None, None, False, True) == list(WITH_DATA)
    assert candidates(None, None, False, False) == [WITHOUT_DATA]
    assert [c.importance for c in candidates(None, "uniform", False, True)] == [c.importance for c in WITH_DATA[:2]]
    assert [c.allocation for c in candidates("mine", None, False, True)] == ["global", "uniform"]
    assert [c.allocation for c in candidates("mine", None, True, False)] == ["error"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_discrepancy_is_zero_for_equal_outputs_and_grows_with_the_error(scale):
    torch.manual_seed(0)
    y, noise = scale * torch.randn(16, 10), scale * torch.randn(16, 10)
    values = [discrepancy([[y]], [[y + s * noise]]) for s in (0.0, 0.01, 0.1, 1.0)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[1] > 0
    assert discrepancy([[y]], [[y * float("nan")]]) == float("inf")
    assert discrepancy([[y, y]], [[y, y[:, :3]]]) == 0  # a cache of another shape


def test_the_choice_is_part_of_the_result():
    result = bough.prune(net(), X[:2], HALF, data=X.split(32))
    choice = json.loads(json.dumps(result.to_dict()))["choice"]
    assert choice["importance"] == result.choice.importance
    assert len(choice["trials"]) == len(WITH_DATA)
    assert result.choice.importance in str(result)


def test_the_table_of_the_readme_is_of_the_results():
    results = json.loads(RESULTS.read_text())
    assert table(results, 50) in (Path(__file__).parent.parent / "README.md").read_text()
