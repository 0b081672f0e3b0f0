"""Fine-tuning: against a loop written by hand, and what it leaves behind."""

import copy
import json
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    TensorDataset,
)

import bough
from bough.errors import CheckpointError, TrainingError
from bough.recovery import Training, finetune
from bough.recovery.regularize import GroupLasso, ProgressiveZeroing
from tests.trained import Noisy, net, same, score, weights

pytest.importorskip("accelerate")


def test_a_callback_that_leaves_the_model_in_eval_mode_changes_nothing():
    plain, measured = net(), net()
    training = Training(epochs=2, lr=0.05, batch_size=16)
    finetune(plain, Noisy(), training)
    finetune(measured, Noisy(), training, callback=lambda line: measured.eval())
    assert same(weights(plain), weights(measured))


def test_the_loop_is_plain_training():
    """Against a loop written by hand: full batches in order, SGD, cosine."""
    data = TensorDataset(torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,)))
    a, b = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double() for _ in range(2))
    b.load_state_dict(a.state_dict())
    done = finetune(a, DataLoader(data, 4), Training(epochs=3, lr=0.1, optimizer="sgd", weight_decay=0.0, warmup=0, clip=None))
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


@pytest.mark.parametrize("label", [torch.as_tensor, int], ids=["tensor", "number"])
def test_a_list_of_samples_is_a_dataset_of_them(label):
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randint(0, 3, (10,))
    samples = [(a, label(b)) for a, b in zip(x, y, strict=True)]
    named = [{"input": a, "labels": label(b)} for a, b in samples]
    nets = [nn.Linear(4, 3).double() for _ in range(3)]
    for other in nets[1:]:
        other.load_state_dict(nets[0].state_dict())
    training = Training(epochs=2, batch_size=4)
    finetune(nets[0], TensorDataset(x, y), training)
    done = finetune(nets[1], samples, training)
    by_name = {
        "forward": lambda model, batch: model(batch["input"]),
        "loss": lambda out, batch: F.cross_entropy(out, batch["labels"]),
    }
    finetune(nets[2], named, training, **by_name)
    assert done.steps == 6
    assert all(torch.equal(nets[0].weight, other.weight) for other in nets[1:])


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

        done = finetune(model, Noisy(), Training(epochs=5, batch_size=64, patience=2, folder=folder), evaluate=evaluate)
        assert (done.best, done.best_epoch, done.stopped_early, len(done.epochs)) == (0.8, 1, True, 4)
        assert same(weights(model), seen[1])
    again = net()
    read = finetune(
        again,
        Noisy(),
        Training(epochs=5, batch_size=64, patience=2, folder=tmp_path),
        evaluate=lambda m: pytest.fail("trained"),
    )
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


def test_bfloat16_trains_in_float32_weights():
    model, seen = net(), []
    model[0].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    finetune(model, Noisy(), Training(precision="bf16", batch_size=25))
    assert seen[0] == torch.bfloat16
    assert model[0].weight.dtype == torch.float32
    assert "forward" not in vars(model)
    finetune(model, Noisy(), Training(precision="no"))
    assert seen[-1] == torch.float32


def test_a_model_that_was_trained_before_and_its_copy_train_in_bfloat16_again():
    model, seen = net(), []
    model[0].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    for trained in (model, model, copy.deepcopy(model)):
        seen.clear()
        finetune(trained, Noisy(), Training(precision="bf16", batch_size=25))
        assert set(seen) == {torch.bfloat16}


def test_the_precision_of_an_accelerator_of_the_user_s_stays():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    own = Accelerator(mixed_precision="no")
    try:
        with pytest.raises(TrainingError, match="started otherwise in this process"):
            finetune(net(), Noisy(), Training(precision="bf16"))
        finetune(net(), Noisy())
        assert own.mixed_precision == "no"
    finally:
        AcceleratorState._reset_state()


def test_the_log_is_json_lines(tmp_path):
    finetune(net(), Noisy(), Training(epochs=2, batch_size=25, folder=tmp_path, log_every=2), evaluate=score)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"], "lr" in line, "metric" in line) for line in lines] == [
        (2, 0, True, False), (2, 0, False, True), (4, 1, True, False), (4, 1, False, True)
    ]  # fmt: skip


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


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 1.5},
        {"clip": 0.0},
        {"clip": -1.0},
        {"weight_decay": -1.0},
        {"momentum": 1.0},
        {"lr": float("nan")},
        {"lr": "3"},
        {"epochs": "3"},
    ],
)
def test_options_that_do_harm(options):
    with pytest.raises(TrainingError, match=next(iter(options))):
        Training(**options)


@pytest.mark.parametrize(
    "given",
    [
        {"loss": lambda out, batch: F.cross_entropy(out, batch[1], reduction="none")}, {"loss": lambda out, batch: 1.0},
        {"loss": lambda out, batch: out.detach().sum()},
        {"evaluate": lambda model: None}, {"evaluate": lambda model: torch.ones(2)},
    ],
)  # fmt: skip
def test_what_is_no_loss_and_no_metric_is_told(given):
    with pytest.raises(TrainingError, match=next(iter(given))):
        finetune(net(), Noisy(), **given)


def test_labels_that_do_not_fit_are_told():
    for labels in (torch.full((8,), 3), torch.rand(8), torch.zeros(8, 2, dtype=torch.long)):
        with pytest.raises(TrainingError, match="number the classes"):
            finetune(net(), TensorDataset(torch.randn(8, 4), labels))


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
