"""Fine-tuning and distilling: a run that is killed ends as one that is not; losses against formulas by hand."""

import json
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

import bough
from bough.errors import CheckpointError, PlanError, TrainingError
from bough.recovery import Distillation, Features, Training, distill, distillation_loss, finetune
from bough.recovery.loop import Run
from bough.recovery.records import read_log
from bough.recovery.regularize import GroupLasso, GrowingPenalty, ProgressiveZeroing
from bough.recovery.state import read_state, write_state

pytest.importorskip("accelerate")


def net(width: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 3),
    )  # fmt: skip


class Noisy(Dataset):
    """Samples with noise from the global generators, as augmentations draw it."""

    def __init__(self, n: int = 50) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(n, 4, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 0.1 * torch.randn(4), (self.x[i].sum() > 0).long()


def score(model: nn.Module) -> float:
    data = Noisy()
    return float((model(data.x).argmax(1) == (data.x.sum(1) > 0)).float().mean())


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_a_callback_that_leaves_the_model_in_eval_mode_changes_nothing():
    plain, measured = net(), net()
    training = Training(epochs=2, lr=0.05, batch_size=16)
    finetune(plain, Noisy(), training)
    finetune(measured, Noisy(), training, callback=lambda line: measured.eval())
    assert same(weights(plain), weights(measured))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(Exception):
    pass


def kill_at(*steps):
    """A callback that ends the run in each of these steps, the first time it gets there."""
    left = list(steps)

    def callback(line):
        if line["step"] in left:
            left.remove(line["step"])
            raise Killed

    return callback


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
    save, calls = Run._save, []

    def killed(self):
        calls.append(self.at.step)
        if len(calls) == 8:  # after the 7 steps of the first epoch
            raise Killed
        save(self)

    monkeypatch.setattr(Run, "_save", killed)
    again, *_, times = run(Training(folder=tmp_path / "b", epochs=2, save_every=1))
    assert times == 1
    assert read_log(tmp_path / "a" / "log.jsonl") == read_log(tmp_path / "b" / "log.jsonl")
    assert same(weights(whole), weights(again))


def test_a_process_killed_at_any_moment(tmp_path):
    """kill -9, wherever the process is: also while it writes."""
    code = (
        "import sys, torch; from tests.test_training import *; torch.set_num_threads(1);"
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


def test_the_loop_is_plain_training():
    """Against a loop written by hand: full batches in order, SGD, cosine."""
    data = TensorDataset(torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,)))
    a, b = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double() for _ in range(2))
    b.load_state_dict(a.state_dict())
    done = finetune(a, DataLoader(data, 4), Training(epochs=3, lr=0.1, optimizer="sgd", weight_decay=0.0, warmup=0))
    sgd = torch.optim.SGD(b.parameters(), 0.1, momentum=0.9, nesterov=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 9)
    for _ in range(3):
        for x, y in DataLoader(data, 4):
            sgd.zero_grad()
            F.cross_entropy(b(x), y).backward()
            sgd.step()
            cosine.step()
    assert done.steps == 9
    assert all(torch.allclose(p, q, atol=1e-12) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_accumulated_batches_are_one_large_batch():
    data = TensorDataset(torch.randn(16, 4, dtype=torch.float64), torch.randint(0, 3, (16,)))
    a, b = (nn.Linear(4, 3).double() for _ in range(2))
    b.load_state_dict(a.state_dict())
    finetune(a, DataLoader(data, 4), Training(epochs=2, accumulate=2))
    finetune(b, DataLoader(data, 8), Training(epochs=2))
    assert torch.allclose(a.weight, b.weight, atol=1e-12)


def test_the_best_weights_are_kept_and_patience_ends_the_run(tmp_path):
    for folder in (None, tmp_path):
        metrics, seen, model = iter([0.5, 0.8, 0.7, 0.6, 0.9]), [], net()

        def evaluate(model, metrics=metrics, seen=seen):
            assert not model.training
            seen.append(weights(model))
            return next(metrics)

        done = finetune(model, Noisy(), Training(epochs=5, patience=2, folder=folder), evaluate=evaluate)
        assert (done.best, done.best_epoch, done.stopped_early, len(done.epochs)) == (0.8, 1, True, 4)
        assert same(weights(model), seen[1])
    again = net()
    read = finetune(again, Noisy(), Training(epochs=5, patience=2, folder=tmp_path), evaluate=lambda m: pytest.fail("trained"))
    assert same(weights(again), seen[1])
    assert read.to_dict() == {**done.to_dict(), "resumed": 4}


def test_modes_generators_and_rates_are_left_alone():
    model = net().eval()
    model[1].train()
    sgd = torch.optim.SGD(model.parameters(), 0.05)
    torch.manual_seed(5)
    finetune(model, Noisy(), Training(epochs=1), optimizer=sgd)
    assert float(torch.rand(())) == float(torch.rand((), generator=torch.Generator().manual_seed(5)))
    assert [m.training for m in model] == [False, True, False, False, False, False, False]
    assert sgd.param_groups[0]["lr"] == 0.05
    assert "forward" not in vars(model)


def test_errors(tmp_path):
    with pytest.raises(TrainingError, match="use 'no' or 'bf16'"):
        Training(precision="fp8")
    with pytest.raises(TrainingError, match="epochs=0"):
        Training(epochs=0)
    with pytest.raises(TrainingError, match="give a torch Dataset"):
        finetune(net(), [1, 2])
    with pytest.raises(TrainingError, match="batch_size=None"):
        finetune(net(), DataLoader(Noisy(), batch_size=None))
    with pytest.raises(TrainingError, match="nothing to train"):
        finetune(net().requires_grad_(False), Noisy())
    model = net()
    with pytest.raises(TrainingError, match=r"the loss is nan in step 1 "):
        finetune(model, Noisy(), loss=lambda y, batch: y.sum() * float("nan"))
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(TrainingError, match="give loss="):
        finetune(net(), TensorDataset(torch.randn(4, 4)))
    finetune(net(), Noisy(), Training(folder=tmp_path))
    with pytest.raises(TrainingError, match="another lr"):
        finetune(net(), Noisy(), Training(lr=0.5, folder=tmp_path))
    with pytest.raises(TrainingError, match="another model"):
        finetune(net(9), Noisy(), Training(folder=tmp_path))
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="damaged"):
        finetune(net(), Noisy(), Training(folder=tmp_path))


def test_accelerate_is_asked_for_when_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(TrainingError, match=r"pip install 'bough\[train\]'"):
        finetune(net(), Noisy())


def test_bfloat16_trains_in_float32_weights(one_precision):
    model, seen = net(), []
    model[0].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    finetune(model, Noisy(), Training(precision="bf16", batch_size=25))
    assert seen[0] == torch.bfloat16
    assert model[0].weight.dtype == torch.float32
    assert "forward" not in vars(model)
    with pytest.raises(TrainingError, match="started otherwise in this process"):
        finetune(net(), Noisy(), Training(precision="no"))


@pytest.fixture
def one_precision():
    """accelerate's precision is one per process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


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


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_loss_is_the_divergence_by_hand(temperature):
    s, t = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    q, p = (torch.exp(x / temperature) / torch.exp(x / temperature).sum(-1, keepdim=True) for x in (s, t))
    by_hand = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    assert float(distillation_loss(s, t, temperature=temperature)) == pytest.approx(float(by_hand), rel=1e-12)
    assert float(distillation_loss(t, t)) == 0
    with pytest.raises(TrainingError, match="logits of the student"):
        distillation_loss(s, t[0])


def test_distill_mixes_what_it_is_told_to():
    model, small = net().eval(), net(6)
    before, line = weights(model), []
    x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
    small[3].p = 0.0
    small_copy = net(6)
    small_copy.load_state_dict(small.state_dict())
    small_copy[3].p = 0.0
    how = Distillation(temperature=3.0, logits=0.7)
    distill(small, model, DataLoader(TensorDataset(x, y), 8), distillation=how, callback=line.append)
    out = small_copy.train()(x).detach()
    expected = 0.7 * distillation_loss(out, model(x), temperature=3.0) + 0.3 * F.cross_entropy(out, y)
    assert line[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert same(before, weights(model))
    assert not model.training


class Convolutional(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.norm, self.inner, self.head = (
            nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, width, 1), nn.Linear(width, 3)
        )  # fmt: skip

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + self.inner(x)).mean((2, 3)))


def test_features_of_a_cut_model_match_the_units_it_kept():
    torch.manual_seed(0)
    model, x = Convolutional().eval(), torch.randn(4, 2, 6, 6)
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    small = bough.cut(model, plan)
    match = Features(graph, ["norm", "inner"], plan=plan)
    assert not list(match.parameters())
    with match.watch(small, model) as seen:
        small(x), model(x)
    kept = plan.kept["stem.weight"][0]
    wanted = [model.norm(model.stem(x))[:, kept], model.inner(F.relu(model.norm(model.stem(x))))[:, kept]]
    own = [small.norm(small.stem(x)), small.inner(F.relu(small.norm(small.stem(x))))]
    by_hand = sum(((a - b) ** 2).mean() / (b**2).mean() for a, b in zip(own, wanted, strict=True)) / 2
    assert torch.allclose(own[0], wanted[0], atol=1e-6)  # the stem reads the image: nothing it reads was cut
    assert match(seen).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert not small.norm._forward_hooks


def test_features_of_another_model_are_projected_and_learned(tmp_path):
    torch.manual_seed(0)
    model, x = Convolutional(6).eval(), torch.randn(16, 2, 6, 6)
    small = Convolutional(4)
    match = Features(bough.trace(model, x), {"norm": "norm", "head": "head"}, student=bough.trace(small, x))
    assert [tuple(p.shape) for p in match.parameters()] == [(6, 4)]
    before = weights(match)
    how = Distillation(logits=1.0, features=2.0, match=match)
    line = []
    done = distill(small, model, TensorDataset(x), Training(epochs=30, lr=0.02), distillation=how, callback=line.append)
    assert not same(before, weights(match))
    assert line[-1]["loss"] < 0.5 * line[0]["loss"]
    assert done.steps == 30


def test_features_errors():
    graph = bough.trace(net().eval(), torch.randn(2, 4))
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
    with pytest.raises(PlanError, match="no module"):
        Features(graph, ["nowhere"], plan=plan)
    with pytest.raises(PlanError, match="either the plan"):
        Features(graph, ["1"])
    with pytest.raises(PlanError, match="at least one"):
        Features(graph, [], plan=plan)


def test_the_log_is_json_lines(tmp_path):
    finetune(net(), Noisy(), Training(epochs=2, batch_size=25, folder=tmp_path, log_every=2), evaluate=score)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"], "lr" in line, "metric" in line) for line in lines] == [
        (2, 0, True, False), (2, 0, False, True), (4, 1, True, False), (4, 1, False, True)
    ]  # fmt: skip


def stopped_at(step):
    def stop(line):
        if line["step"] == step:
            raise KeyboardInterrupt

    return stop


def sgd(**options):
    return lambda model: {"optimizer": torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})}


def lasso(strength):
    return lambda model: {"regularizers": [GroupLasso(bough.trace(model.eval(), torch.randn(2, 4)), strength)]}


@pytest.mark.parametrize(
    ("before", "after", "told"),
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
def test_a_run_is_not_taken_up_with_something_else(tmp_path, before, after, told):
    def go(made, **more):
        model = net()
        options = made(model)
        training = Training(epochs=2, batch_size=17, folder=tmp_path, save_every=1, **options.pop("training", {}))
        finetune(model, DataLoader(Noisy(), options.pop("loader", 17)), training, **options, **more)

    with pytest.raises(KeyboardInterrupt):
        go(before, callback=stopped_at(2))
    with pytest.raises(TrainingError, match=told):
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
    same(whole, go(tmp_path / "cut"))


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
    same(whole, go(tmp_path / "cut"))


def test_an_epoch_before_the_fade_is_over_is_not_the_best():
    model = net().eval()
    fading = ProgressiveZeroing(bough.trace(model, torch.randn(2, 4)), bough.Budget(macs="30%"), steps=3, periods=2)
    metrics = iter([1.0, 0.5, 0.6])  # the first epoch is the best, and not settled
    done = finetune(
        model, Noisy(), Training(epochs=3, lr=0.01, batch_size=17), evaluate=lambda _: next(metrics), regularizers=[fading]
    )  # fmt: skip
    assert (done.best, done.best_epoch) == (0.6, 2)
    x = torch.randn(8, 4)
    assert torch.allclose(bough.cut(model.eval(), fading.plan)(x), model(x), atol=1e-5)


def test_a_lasso_keeps_the_last_weights():
    model = net().eval()
    shrinking = GroupLasso(bough.trace(model, torch.randn(2, 4)), strength=5.0)
    metrics = iter([1.0, 0.5])
    done = finetune(
        model, Noisy(), Training(epochs=2, lr=0.1, batch_size=17), evaluate=lambda _: next(metrics), regularizers=[shrinking]
    )  # fmt: skip
    assert done.best is None
    assert bough.recovery.zeros(shrinking.graph).kept  # the first epoch's weights had none that went


def test_logits_of_maps_are_compared_over_classes():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    wanted = distillation_loss(student.movedim(1, -1), teacher.movedim(1, -1))
    assert torch.allclose(distillation_loss(student, teacher, dim=1), wanted)
    small, large = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 1)
    x = torch.randn(2, 3, 3, 4)
    wanted = distillation_loss(small(x).movedim(1, -1), large(x).movedim(1, -1)).item()
    done = distill(small, large, TensorDataset(x), Training(batch_size=2), distillation=Distillation(logits=1.0))
    assert done.epochs[0]["loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"epochs": 1.5}, {"clip": 0.0}, {"clip": -1.0}, {"weight_decay": -1.0}, {"momentum": 1.0}, {"lr": float("nan")}],
)
def test_options_that_do_harm(options):
    with pytest.raises(TrainingError, match=next(iter(options))):
        Training(**options)


def test_what_can_not_be_trained_is_told_before(tmp_path):
    with pytest.raises(TrainingError, match="evaluate"):
        finetune(net(), Noisy(), Training(patience=1))
    with pytest.raises(TrainingError, match="no samples"):
        finetune(net(), Noisy(0), Training())
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="is a file"):
        finetune(net(), Noisy(), Training(folder=tmp_path / "file"))
    other = GroupLasso(bough.trace(net().eval(), torch.randn(2, 4)), strength=1.0)
    with pytest.raises(TrainingError, match="another model"):
        finetune(net(), Noisy(), Training(), regularizers=[other])


class Aside(nn.Module):
    """Computes something on the side after its output."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 8)

    def forward(self, x):
        y = self.inner(x).relu()
        self.aside = y.square().mean()
        return y


def test_the_output_of_a_module_is_what_goes_on():
    torch.manual_seed(0)
    model, x = nn.Sequential(Aside(), nn.Linear(8, 3)), torch.randn(6, 4)
    graph = bough.trace(model, x[:2])
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=0.5)
    small, match = bough.cut(model, plan), Features(graph, ["0"], plan=plan)
    with match.watch(small, model) as seen:
        small(x), model(x)
    assert match(seen).item() == pytest.approx(0.0, abs=1e-12)
