"""A run that is killed ends as one that is not, and is not taken up as another."""

import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    WeightedRandomSampler,
)

import bough
from bough.errors import CheckpointError, TrainingError
from bough.recovery import Distillation, Training, distill, finetune
from bough.recovery.regularize import GroupLasso, GrowingPenalty
from bough.recovery.training import TrainingRun, read_log
from bough.storage import read_state, write_state
from tests.trained import Killed, Noisy, kill_at, net, same, score, stopped_at, weights

pytest.importorskip("accelerate")


def run(training, killed=(), workers=0, optimizer="adamw"):
    """A run with everything that has a state, from new objects each time it is killed, as in a new process."""
    callback, times = kill_at(*killed), 0
    while True:
        model = net()
        penalty = GrowingPenalty(bough.trace(model.eval(), torch.randn(2, 4)), growth=0.1, every=2)
        data = DataLoader(Noisy(), 8, shuffle=True, num_workers=workers)
        torch.manual_seed(times)  # what the process drew before does not matter
        try:
            done = finetune(model, data, training, evaluate=score, regularizers=[penalty], callback=callback)
            return model, done, penalty, times
        except Killed:
            times += 1


@pytest.mark.parametrize(
    ("killed", "options"),
    [
        ((1, 7, 8), {"save_every": 1, "epochs": 2}),
        ((5, 11, 15), {"save_every": 2, "accumulate": 2, "optimizer": "sgd", "clip": 1.0}),
        ((3, 9), {"patience": 1, "schedule": "linear"}),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, killed, options):
    """50 samples in batches of 8: 7 batches an epoch, the last one smaller."""
    common = {"epochs": 4, "lr": 0.02, "seed": 3, **options}
    model, done, penalty, _ = run(Training(folder=tmp_path / "a", **common))
    again, resumed, other, times = run(Training(folder=tmp_path / "b", **common), killed)
    assert times == len(killed)
    assert same(weights(model), weights(again))
    assert (done.epochs, done.best, done.best_epoch) == (resumed.epochs, resumed.best, resumed.best_epoch)
    assert same(penalty.strengths, other.strengths)
    assert read_log(tmp_path / "a" / "log.jsonl") == read_log(tmp_path / "b" / "log.jsonl")
    assert (tmp_path / "b" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_killed_between_an_epoch_s_log_and_its_state(tmp_path, monkeypatch):
    whole, *_ = run(Training(folder=tmp_path / "a", epochs=2, save_every=1))
    save, calls = TrainingRun._save, []

    def killed(self):
        calls.append(self.counters.step)
        if len(calls) == 8:  # after the 7 steps of the first epoch
            raise Killed
        save(self)

    monkeypatch.setattr(TrainingRun, "_save", killed)
    again, *_, times = run(Training(folder=tmp_path / "b", epochs=2, save_every=1))
    assert times == 1
    assert read_log(tmp_path / "a" / "log.jsonl") == read_log(tmp_path / "b" / "log.jsonl")
    assert same(weights(whole), weights(again))


def test_a_process_killed_at_any_moment(tmp_path):
    """kill -9, wherever the process is: also while it writes."""
    code = (
        "import sys, torch; from tests.recovery.training.test_resuming import *; torch.set_num_threads(1);"
        "run(Training(epochs=6, lr=0.02, save_every=1, folder=sys.argv[1]))"
    )
    expected, *_ = run(Training(epochs=6, lr=0.02, folder=tmp_path / "whole"))
    folder = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stderr=subprocess.DEVNULL)
    while child.poll() is None and len(read_log(folder / "log.jsonl")) < 9:
        time.sleep(0.002)
    running = child.poll() is None
    child.kill()
    child.wait()
    model, done, *_ = run(Training(epochs=6, lr=0.02, save_every=1, folder=folder))
    assert running
    assert done.resumed > 0
    assert same(weights(model), weights(expected))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than a machine may have cores
def test_what_is_drawn_depends_on_neither_workers_nor_what_is_fetched_ahead():
    a, *_ = run(Training(epochs=2))
    b, *_ = run(Training(epochs=2), workers=2)
    c, *_ = run(Training(epochs=2, seed=1))
    assert same(weights(a), weights(b))
    assert not same(weights(a), weights(c))


class Lengths:
    """Batches of different sizes, of random samples."""

    def __iter__(self):
        return iter([torch.randperm(20)[:n].tolist() for n in (3, 5, 4)])

    def __len__(self):
        return 3


class Stream(IterableDataset):
    def __len__(self):
        return 20

    def __iter__(self):
        return iter([(x, y) for x, y in zip(Noisy(20).x, torch.arange(20) % 3, strict=True)])


def masked(samples):
    """Batches as mappings, with something drawn while collating, as language models are trained."""
    x = torch.stack([x for x, _ in samples])
    return {"x": x * (torch.rand(x.shape) > 0.3), "y": torch.tensor([int(y) for _, y in samples])}


class Mapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, y):
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, y), "logits": logits}


LOADERS = {
    "a stream": lambda: DataLoader(Stream(), 4),
    "drawn with weights": lambda: DataLoader(Noisy(20), 4, sampler=WeightedRandomSampler(torch.arange(1.0, 21), 12)),
    "with a generator": lambda: DataLoader(Noisy(20), 4, shuffle=True, generator=torch.Generator().manual_seed(9)),
    "a batch sampler": lambda: DataLoader(Noisy(20), batch_sampler=Lengths()),
    "mappings": lambda: DataLoader(Noisy(20), 4, shuffle=True, collate_fn=masked),
}  # fmt: skip


@pytest.mark.parametrize("name", LOADERS)
def test_any_loader_is_resumed(name, tmp_path):
    def trained(folder, callback=None):
        loader = LOADERS[name]()
        model = Mapped() if name == "mappings" else net()
        done = finetune(model, loader, Training(epochs=2, lr=0.02, save_every=1, folder=tmp_path / folder), callback=callback)
        generator = getattr(loader.sampler, "generator", None)
        assert (generator is None) == (name != "with a generator")  # the loader is as it was
        return model, done

    whole, done = trained("whole")
    for step in (2, done.steps - 1):  # in the first epoch, and in the last
        with pytest.raises(Killed):
            trained("killed", kill_at(step))
    again, resumed = trained("killed")
    assert resumed.resumed == done.steps - 1
    assert done.epochs == resumed.epochs
    assert same(weights(whole), weights(again))
    orders = {tuple(sorted(e.items())) for e in done.epochs}
    assert len(orders) == 2


def test_a_state_is_read_as_written(tmp_path):
    shared = torch.randn(3, 2)
    tree = {
        "a": shared, "again": shared, "part": shared[1], "turned": shared.T, 1: (1, 2.5, None),
        "list": [True, "x", {"y": -1e-300}], "big": 2**62 + 1,
        "half": torch.ones(2, dtype=torch.bfloat16), "none": torch.zeros(0),
        "scalar": torch.tensor(3),
    }  # fmt: skip
    write_state(tmp_path / "s", tree)
    back = read_state(tmp_path / "s")
    assert back.keys() == tree.keys()
    for key, value in tree.items():
        assert torch.equal(back[key], value) if isinstance(value, torch.Tensor) else back[key] == value
    with pytest.raises(CheckpointError, match="x is a object"):
        write_state(tmp_path / "s", {"x": object()})
    assert read_state(tmp_path / "s").keys() == tree.keys()


def sgd(**options):
    return lambda model: {"optimizer": torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})}


def lasso(strength):
    return lambda model: {"regularizers": [GroupLasso(bough.trace(model.eval(), torch.randn(2, 4)), strength)]}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (sgd(), sgd(lr=0.2), "optimizer"),
        (sgd(), sgd(momentum=0.8), "optimizer"),
        (sgd(), lambda model: {"optimizer": torch.optim.AdamW(model.parameters())}, "optimizer"),
        (lasso(0.01), lasso(0.5), "regularizers"),
        (lasso(0.01), lambda model: {}, "regularizers"),
        (lambda model: {}, lambda model: {"evaluate": score}, "evaluate"),
        (lambda model: {"training": {"start": "one"}}, lambda model: {"training": {"start": "other"}}, "start"),
        (lambda model: {}, lambda model: {"loader": 16}, "batch size"),
    ],
)
def test_a_run_is_not_taken_up_with_something_else(tmp_path, before, after, message):
    def go(made, **more):
        model = net()
        options = made(model)
        training = Training(epochs=2, batch_size=17, folder=tmp_path, save_every=1, **options.pop("training", {}))
        finetune(model, DataLoader(Noisy(), options.pop("loader", 17)), training, **options, **more)

    with pytest.raises(KeyboardInterrupt):
        go(before, callback=stopped_at(2))
    with pytest.raises(TrainingError, match=message):
        go(after)
    go(before)


def test_distillation_is_not_taken_up_at_another_temperature(tmp_path):
    def go(temperature, **more):
        training = Training(epochs=2, folder=tmp_path, save_every=1, batch_size=17)
        distill(net(), net(), Noisy(), training, distillation=Distillation(temperature=temperature), **more)

    with pytest.raises(KeyboardInterrupt):
        go(2.0, callback=stopped_at(2))
    with pytest.raises(TrainingError, match="loss"):
        go(4.0)


class Counting(nn.Module):
    """Has a buffer that does not persist, and what it gives depends on it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen += x.abs().mean()
        return self.inner(x) * (1 + 0.1 * self.seen)


def test_buffers_that_do_not_persist_are_resumed(tmp_path):
    def go(folder, **more):
        model = Counting()
        finetune(model, Noisy(), Training(epochs=2, lr=0.1, batch_size=17, folder=folder, save_every=1), **more)
        return weights(model)

    whole = go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", callback=stopped_at(4))
    assert same(whole, go(tmp_path / "cut"))


class Shuffled:
    """Draws whole batches from its generator."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)

    def __len__(self):
        return 3

    def __iter__(self):
        yield from (part.tolist() for part in torch.randperm(50, generator=self.generator).split(17))


def test_a_batch_sampler_that_draws_is_resumed(tmp_path):
    def go(folder, **more):
        model = net()
        training = Training(epochs=3, folder=folder, save_every=1)
        finetune(model, DataLoader(Noisy(), batch_sampler=Shuffled()), training, **more)
        return weights(model)

    whole = go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", callback=stopped_at(4))
    assert same(whole, go(tmp_path / "cut"))
