"""Calibration data: every form of batch, one bounded pass, sums that are taken up again, one clear error for bad requests."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bough
from bough.calibration import Data
from bough.errors import PlanError, TraceError
from bough.importance import criterion
from tests.importance.test_criteria import loss, output, scored, tiny
from tests.zoo import randomize


def test_every_form_of_batch():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x, scale=None):
            h = torch.relu(self.a(x))
            return self.b(h if scale is None else h * scale)

    torch.manual_seed(0)
    model, x, scale = randomize(Pair()), torch.randn(6, 4, dtype=torch.float64), torch.rand(6, 1, dtype=torch.float64)
    one, two = bough.trace(model, x[:2]), bough.trace(model, {"x": x[:2], "scale": scale[:2]})
    labels = torch.zeros(6)
    plain = scored(one, "activation_mean", [x])["a"]
    scaled = scored(two, "activation_mean", [{"x": x, "scale": scale}])["a"]
    assert not np.allclose(plain, scaled)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=4)
    for batches in ([(x, labels)], [[x, labels]], [{"labels": labels, "x": x}], loader):
        np.testing.assert_allclose(scored(one, "activation_mean", batches)["a"], plain)
    for batches in ([{"scale": scale, "x": x, "labels": labels}], [(x, scale, labels)]):
        np.testing.assert_allclose(scored(two, "activation_mean", batches)["a"], scaled)
    given = Data([{"pixels": x}], forward=lambda model, batch: model(batch["pixels"]))
    np.testing.assert_allclose(scored(one, "activation_mean", given)["a"], plain)
    with pytest.raises(PlanError, match=r"lacks 'scale'.*it has x"):
        scored(two, "activation_mean", [{"x": x}])
    with pytest.raises(PlanError, match="traced with 2"):
        scored(two, "activation_mean", [x])


class Tracked:
    """Batches that are made as they are asked for, and how many of them live."""

    def __init__(self, count, fail_at=None):
        self.count, self.fail_at, self.living, self.most, self.given = count, fail_at, [], 0, 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(3)
        for i in range(self.count):
            batch = torch.randn(2, 4, dtype=torch.float64, generator=generator)
            if i == self.fail_at:
                raise InterruptedError
            self.living.append(weakref.ref(batch))
            self.given += 1
            self.most = max(self.most, sum(alive() is not None for alive in self.living))
            yield batch
            del batch


@pytest.mark.parametrize("name", ["activation_mean", "taylor", "fisher", "obs", "masked_loss"])
def test_memory_does_not_grow_with_the_data(name):
    _, graph, _ = tiny()
    batches = Tracked(12)
    scored(graph, name, batches)
    assert batches.given == 12
    assert batches.most <= 3


@pytest.mark.parametrize("name", ["wanda", "taylor", "fisher", "obs", "block_influence"])
def test_an_interrupted_pass_goes_on_where_it_was(name, tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)))

    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Linear(4, 6), nn.Sequential(Block(), Block()), nn.Linear(6, 2)))
    graph = bough.trace(model, torch.randn(2, 4, dtype=torch.float64))
    whole = scored(graph, name, Tracked(9))
    with pytest.raises(InterruptedError):
        scored(graph, name, Data(Tracked(9, fail_at=7), checkpoint=tmp_path, every=3))
    (file,) = tmp_path.iterdir()
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    again = scored(graph, name, Data(Tracked(9), checkpoint=tmp_path, every=3))
    handle.remove()
    assert len(calls) == (3 if name != "fisher" else 6)  # three batches are left, of two samples
    for group in whole:
        np.testing.assert_allclose(again[group], whole[group], rtol=1e-12)
    assert not file.exists()


def test_sums_of_other_weights_are_not_taken_up(tmp_path):
    model, graph, _ = tiny()
    with pytest.raises(InterruptedError):
        scored(graph, "wanda", Data(Tracked(9, fail_at=7), checkpoint=tmp_path, every=3))
    with torch.no_grad():
        model[0].weight.mul_(2)
    fresh = scored(graph, "wanda", Tracked(9))
    np.testing.assert_allclose(scored(graph, "wanda", Data(Tracked(9), checkpoint=tmp_path, every=3))["0"], fresh["0"])


def test_progress_is_shown_when_asked_for(capsys):
    _, graph, data = tiny()
    scored(graph, "wanda", [data])
    assert not capsys.readouterr().out
    scored(graph, "wanda", Data([data], progress=True))
    assert "Wanda" in capsys.readouterr().out


def test_bad_requests():
    _, graph, data = tiny()
    with pytest.raises(PlanError, match=r"Taylor needs data"):
        bough.score(graph, criterion("taylor", loss))
    with pytest.raises(PlanError, match=r"gives no batches$"):
        scored(graph, "wanda", [])
    spent = iter([data])
    scored(graph, "wanda", spent)
    with pytest.raises(PlanError, match="no batches a second time"):
        scored(graph, "wanda", spent)
    with pytest.raises(PlanError, match="is not finite"):
        scored(graph, "wanda", [data * float("nan")])
    with pytest.raises(PlanError, match="returned a tensor of shape"):
        bough.score(graph, criterion("taylor", output), [data])
    with pytest.raises(PlanError, match="does not depend"):
        bough.score(graph, criterion("taylor", lambda model, batch: torch.ones(())), [data])
    with pytest.raises(PlanError, match="no criterion 'l3'"):
        criterion("l3")
    with pytest.raises(PlanError, match="needs a loss"):
        criterion("fisher")
    for kind, options in (
        (bough.importance.Taylor, {"loss": loss, "form": "cube"}),
        (bough.importance.Shapley, {"loss": loss, "permutations": 0}),
        (bough.importance.OBS, {"ridge": 0}),
        (bough.importance.ThiNet, {"step": 0}),
        (bough.importance.Wanda, {"p": 0}),
        (bough.importance.Magnitude, {"p": -1}),
    ):
        with pytest.raises(PlanError, match=kind.__name__):
            kind(**options)


def test_experts_that_data_does_not_reach_are_told():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x))) if x.sum() > 0 else self.d(torch.relu(self.c(x)))

    torch.manual_seed(0)
    graph = bough.trace(Routed(), torch.ones(2, 4), real=True)
    assert np.isfinite(scored(graph, "wanda", [torch.ones(3, 4)])["a"]).all()
    with pytest.raises((PlanError, bough.errors.TraceError), match=r"takes another path|nothing reads the units"):
        scored(graph, "wanda", [-torch.ones(3, 4)])


class Unit(nn.Module):
    """Of a ShuffleNet: grouped convolutions, a channel shuffle, and a sum that ties the two orders of channels together."""

    def __init__(self):
        super().__init__()
        self.a, self.h = nn.Conv2d(3, 16, 1), nn.Linear(16, 4)
        self.g1, self.g2 = nn.Conv2d(16, 16, 1, groups=4), nn.Conv2d(16, 16, 1, groups=4)

    def forward(self, x):
        x = F.relu(self.a(x))
        y = F.relu(self.g1(x))
        n, c, h, w = y.shape
        y = y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.h(F.relu(x + self.g2(y)).mean((2, 3)))


class Dead(nn.Module):
    """A gate whose inner units give zero on all data."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.down, self.up = nn.Linear(16, 8), nn.Linear(8, 16)
        nn.init.constant_(self.down.bias, -50.0)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.out(x * torch.sigmoid(self.up(F.relu(self.down(x)))))


class Still(nn.Module):
    """A branch that is constant on all data."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(6, 8), nn.Linear(8, 4)
        self.out = nn.Linear(8, 3)
        nn.init.zeros_(self.a.weight)

    def forward(self, x):
        return self.out(torch.cat([F.relu(self.b(F.relu(self.a(x)))), F.relu(self.d(F.relu(self.c(x))))], 1))


@pytest.mark.parametrize("name", ["obs", "obs(relative=True)", "obs(relative=True, probes=2)", "thinet(relative=True)"])
@pytest.mark.parametrize(("build", "shape"), [(Unit, (2, 3, 8, 8)), (Dead, (64, 6)), (Still, (37, 6))])
def test_reconstruction_scores_are_numbers_one_can_compare(name, build, shape):
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = build().eval(), torch.randn(shape)
        scores = bough.score(bough.trace(model, x), name, [x])
        assert all((values < 1e3).all() and (values >= 0).all() for values in scores.values())


def test_units_that_are_dead_cost_nothing():
    torch.manual_seed(0)
    model, x = Dead().eval(), torch.randn(64, 6)
    graph = bough.trace(model, x)
    scores = bough.score(graph, "obs(relative=True)", [x])
    assert scores["down"].max() < 1e-9 < scores["a"].max()
    assert bough.plan(graph, scores, bough.Budget(params="60%"), allocation="error").groups["down"][0] == 1


def test_names_combine_with_data():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 6)
    graph = bough.trace(model, x)
    both = bough.score(graph, bough.importance.Combined(["l1", ("wanda", 2.0)]), [x])
    again = bough.importance.Combined([bough.importance.Magnitude(p=1), (bough.importance.Wanda(), 2.0)])
    assert np.array_equal(both["0"], bough.score(graph, again, [x])["0"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("parameter", ["0.weight", "0.bias", "2.weight"])
@pytest.mark.parametrize("name", ["l1", "l2", "group", "lamp", "fpgm", "cosine"])
def test_weights_that_are_not_finite_are_told(name, parameter, value):
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    model.get_parameter(parameter).data.flatten()[3] = value
    with pytest.raises(PlanError, match=f"{parameter} is not finite".replace(".", r"\.")):
        bough.score(bough.trace(model, torch.randn(2, 6)), name)


@pytest.mark.parametrize("batches", [[torch.randn(4, 5)], [torch.randint(0, 3, (4, 6))], [[1.0, 2.0]], [None]])
def test_data_that_does_not_fit_is_told(batches):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises((PlanError, TraceError)):
        bough.score(bough.trace(model, torch.randn(2, 6)), "wanda", batches)


def test_what_is_no_data_and_no_loss_is_told():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    graph, x = bough.trace(model, torch.randn(2, 6)), torch.randn(4, 6)
    with pytest.raises(PlanError, match="iterable of batches"):
        bough.score(graph, "wanda", {"x": x})
    with pytest.raises(PlanError, match="iterable of batches"):
        Data(Data([x]))
    with pytest.raises(PlanError, match="one number"):
        bough.score(graph, bough.importance.MaskedLoss(lambda model, batch: model(batch).sum(1)), [x])
    with pytest.raises(PlanError, match="not finite"):
        bough.score(graph, "hrank", [x * float("nan")])
