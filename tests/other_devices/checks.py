"""What is promised on a device other than the CPU: a GPU, or one that is made up where there is none."""

import copy
import importlib
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import bough
from bough import importance, recovery
from bough.recovery import regularize
from tests import pages

pytestmark = pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")  # far's own
PLACE = "cuda" if torch.cuda.is_available() else importlib.import_module("tests.other_devices.made_up_device").NAME
os.environ |= {"ACCELERATE_TORCH_DEVICE": PLACE, "ACCELERATE_USE_CPU": "false"}
torch.backends.cudnn.allow_tf32 = False
torch.manual_seed(0)
X = torch.randn(64, 3, 8, 8)
DATA = TensorDataset(X, (X.mean((1, 2, 3)) > 0).long())
BATCHES = list(zip(*(t.split(16) for t in DATA.tensors), strict=True))
TRAINING = recovery.Training(epochs=2, batch_size=16, optimizer="sgd", lr=0.01)


def net(place="cpu"):
    torch.manual_seed(0)
    mixing = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()]
    return nn.Sequential(*mixing, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)).to(place)


def places(model):
    return {t.device.type for t in model.state_dict().values()}


def halved(model, example):
    graph = bough.trace(model, example)
    return graph, bough.plan(graph, bough.score(graph, importance.Magnitude()), keep=0.5)


def assert_same(model, other):
    for one, same in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one.cpu(), same.cpu(), rtol=1e-4, atol=1e-4)


def test_the_device_refuses_what_is_elsewhere():
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, 2).to(PLACE) @ torch.ones(2)


def test_training_runs_on_the_device_and_ends_where_it_began():
    seen = set()
    model, moved = net(), net(PLACE)
    model[0].register_forward_hook(lambda module, x, y: seen.add(y.device.type))
    recovery.finetune(model, DATA, TRAINING, evaluate=lambda m: float(m(X.to(PLACE)).sum()))
    assert seen == {PLACE}
    assert places(model) == {"cpu"}
    recovery.finetune(moved, DATA, TRAINING, evaluate=lambda m: float(m(X.to(PLACE)).sum()))
    assert places(moved) == {PLACE}
    assert_same(model, moved)


def test_a_supernet_trains_on_the_device_and_its_subnets_follow():
    nets = [bough.supernet(net().eval(), X[:2]), bough.supernet(net(PLACE).eval(), X[:2].to(PLACE))]
    for nested in nets:
        nested.fit(DATA, replace(TRAINING, epochs=1), evaluate=lambda m: float(m(X.to(PLACE)).sum()), data=BATCHES)
    assert [places(nested) for nested in nets] == [{"cpu"}, {PLACE}]
    assert_same(*nets)
    moved, subnet = nets[0].eval().to(PLACE), nets[0].smallest
    with moved.at(subnet) as module:
        assert places(module) == {PLACE}
        here = moved(X.to(PLACE))
    torch.testing.assert_close(here.cpu(), moved.extract(subnet).model(X.to(PLACE)).cpu())
    torch.testing.assert_close(here.cpu(), nets[1].eval().extract(subnet).model(X.to(PLACE)).cpu(), rtol=1e-4, atol=1e-4)


def test_a_failed_run_takes_the_model_back_too():
    def fail(model, batch):
        assert places(model) == {PLACE}
        raise ValueError("failed")

    model = net()
    with pytest.raises(ValueError, match="failed"):
        recovery.finetune(model, DATA, TRAINING, forward=fail)
    assert places(model) == {"cpu"}


def test_a_run_resumes_on_the_device(tmp_path):
    class Killed(Exception):
        pass

    def kill(line):
        if line["step"] == 6:
            raise Killed

    whole, resumed = net(), net()
    recovery.finetune(whole, DATA, TRAINING)
    training = replace(TRAINING, folder=tmp_path, save_every=1)
    with pytest.raises(Killed):
        recovery.finetune(net(), DATA, training, callback=kill)
    assert recovery.finetune(resumed, DATA, training).resumed == 6
    assert_same(whole, resumed)


@pytest.mark.parametrize("kind", ["logits", "units", "projections"])
def test_distillation(kind):
    model = net()
    graph, plan = halved(model, X[:1])
    small = bough.cut(model, plan)
    match = {
        "logits": lambda: None,
        "units": lambda: recovery.Features(graph, ["2"], plan=plan),
        "projections": lambda: recovery.Features(graph, ["2"], student=bough.trace(small, X[:1])),
    }[kind]()
    recovery.distill(small, model, DATA, TRAINING, distillation=recovery.Distillation(match=match))
    assert places(small) == places(model) == {"cpu"}


REGULARIZERS = (
    partial(regularize.GroupLasso, strength=1e-3),
    regularize.SparseLearning,
    regularize.GrowingPenalty,
    regularize.Slimming,
)


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_regularizers(kind):
    model = net()
    regularizer = kind(bough.trace(model, X[:1]))
    recovery.finetune(model, DATA, TRAINING, regularizers=[regularizer])
    assert all(len(v) for v in regularizer.scores().values())


def test_zeroing_ends_in_an_exact_cut():
    model = net()
    fading = regularize.ProgressiveZeroing(bough.trace(model, X[:1]), bough.Budget(params="60%"), steps=2)
    recovery.finetune(model, DATA, TRAINING, regularizers=[fading])
    model.eval()
    assert torch.allclose(model(X), bough.cut(model, fading.plan)(X), atol=1e-6)


@pytest.mark.parametrize("place", ["cpu", PLACE])
def test_iterations_score_cut_and_train_in_turn(place):
    done = recovery.iterate(
        net(place), X[:1].to(place), bough.Budget(params="50%"), lambda small, step: recovery.finetune(small, DATA, TRAINING),
        steps=2, importance=importance.OBS(), data=list(X.split(16)),
    )  # fmt: skip
    assert places(done.model) == {place}


def test_an_optimizer_of_the_user_s_goes_along():
    model = net()
    adam = torch.optim.AdamW(model.parameters())
    recovery.iterate(
        model, X[:1], bough.Budget(params="50%"), lambda small, step: recovery.finetune(small, DATA, TRAINING, optimizer=adam),
        steps=2, optimizer=adam,
    )  # fmt: skip
    moments = [state["exp_avg"] for state in adam.state.values()]
    assert {m.device.type for m in moments} == {"cpu"}
    assert all(m.any() for m in moments)


@pytest.mark.parametrize("structured", [False, True])
def test_tickets(structured):
    model = net()
    graph = bough.trace(model, X[:1]) if structured else None

    def train(trained, sparse):
        return recovery.finetune(trained, DATA, TRAINING, regularizers=(sparse,)).epochs[-1]["loss"]

    assert len(recovery.find_tickets(model, train, keep=0.5, rounds=2, graph=graph)) == 3


@pytest.mark.parametrize("repair", ["refit", "merge", "recalibrate"])
def test_repairs_are_those_on_the_cpu(repair):
    made = []
    for place in ("cpu", PLACE):
        model = net(place)
        graph, plan = halved(model, X[:1].to(place))
        small = bough.cut(model, plan)
        if repair == "refit":
            small = recovery.refit(model, small, plan, list(X.split(16))).model
        elif repair == "merge":
            small = recovery.merge(graph, plan).model
        else:
            recovery.recalibrate(small, list(X.split(16)))
        assert places(small) == {place}
        made.append(small)
    assert_same(*made)


def loss(model, batch):
    place = next(model.parameters()).device
    return nn.functional.cross_entropy(model(batch[0].to(place)), batch[1].to(place))


@pytest.mark.parametrize("name", [name for name, entry in importance.CRITERIA.items() if entry.scores == "units"])
def test_scores_are_those_on_the_cpu(name):
    entry = importance.CRITERIA[name]
    found = []
    for place in ("cpu", PLACE):
        made = entry.make(loss) if entry.needs == "loss" else entry.make()
        found.append(bough.score(bough.trace(net(place), X[:1].to(place)), made, BATCHES))
    assert found[0].keys() == found[1].keys()
    for group, values in found[0].items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(found[1][group]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["obs", "thinet", "obs(relative=True)", "wanda", "flap", "hrank", "fisher"])
def test_a_pass_over_data_resumes_on_the_device(name, tmp_path):
    """Stopped after any number of batches, also after the last one."""

    def scores(folder=None, stop=None):
        def batches():
            for i, batch in enumerate(BATCHES):
                if i == stop:
                    raise KeyboardInterrupt
                yield batch

        data = importance.Data(Again(batches), checkpoint=folder, every=1)
        return bough.score(bough.trace(net(PLACE), X[:1].to(PLACE)), importance.criterion(name, loss), data)

    whole = scores()
    for stop in range(1, len(BATCHES)):
        with pytest.raises(KeyboardInterrupt):
            scores(tmp_path / str(stop), stop)
        resumed = scores(tmp_path / str(stop))
        for group, values in whole.items():
            torch.testing.assert_close(torch.tensor(resumed[group]), torch.tensor(values), rtol=1e-6, atol=1e-9)


class Again:
    """What a function gives, again each time it is gone through."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return self.make()


def test_checkpoints_go_from_place_to_place(tmp_path):
    pruned = bough.prune(net(PLACE), X[:1].to(PLACE), bough.Budget(params="60%"))
    bough.save(pruned, tmp_path / "saved")
    for place in ("cpu", PLACE):
        loaded = bough.load(tmp_path / "saved", lambda: net(place))  # noqa: B023
        assert places(loaded) == {place}
        assert_same(loaded, pruned.model)


def test_copies_do_not_share():
    model = net(PLACE)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.zero_()
    assert model[0].weight.cpu().abs().sum() > 0


def test_the_page_on_recovery_runs():
    assert pages.run("recovery.md")["tickets"]
