"""Quantization-aware training by the trainers of recovery."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import bough
from bough.errors import TrainingError
from bough.quantization import QAT
from tests.exporting.models import convolutional
from tests.quantization.test_quantize import batches, trained

pytest.importorskip("torchao", reason="quantize needs torchao: pip install -e .[quantize]")
DISTILLATION = bough.recovery.Distillation(logits=1.0, temperature=1.0)


@pytest.fixture(scope="module")
def quantized():
    """A net whose ranges are far too wide, by values that come once."""
    torch.manual_seed(0)
    model = trained(convolutional())
    data = batches(2)
    data[0][0] *= 100
    options = {"observer": "minmax", "equalize": False, "correct_bias": False}
    return model, bough.quantize(model, torch.zeros(1, 3, 8, 8), data, **options)


def distilled(quantized, **options):
    model, done = quantized
    done = copy.deepcopy(done)
    x = torch.cat(batches(4))
    training = bough.Training(epochs=16, lr=1e-2, batch_size=16, **options)
    bough.distill(done.simulated, model, TensorDataset(x), training, distillation=DISTILLATION)
    return done


def error(model, program):
    x = torch.cat(batches(2, seed=5))
    with torch.no_grad():
        p, q = model(x).log_softmax(1), program(x).log_softmax(1)
    return float(nn.functional.kl_div(q, p, log_target=True, reduction="batchmean"))


def test_distillation_from_the_float_model_brings_the_program_nearer(quantized):
    model, before = quantized
    after = distilled(quantized).retrained(evaluate=lambda program: -error(model, program))
    assert -after.metric < 0.6 * error(model, before.model)
    assert error(model, after.model) == pytest.approx(error(model, after.simulated), rel=1e-2, abs=1e-6)


def test_a_killed_run_goes_on_to_the_same_weights(quantized, tmp_path):
    whole = distilled(quantized, folder=tmp_path / "a", save_every=1)
    model, done = quantized
    done = copy.deepcopy(done)

    class Killed(Exception):
        pass

    def kill(line):
        if line["step"] == 6:
            raise Killed

    x = torch.cat(batches(4))
    training = bough.Training(epochs=16, lr=1e-2, batch_size=16, folder=tmp_path / "b", save_every=1)
    with pytest.raises(Killed):
        bough.distill(done.simulated, model, TensorDataset(x), training, distillation=DISTILLATION, callback=kill)
    again = copy.deepcopy(quantized[1])
    found = bough.distill(again.simulated, model, TensorDataset(x), training, distillation=DISTILLATION)
    assert found.resumed == 6
    for (name, a), b in zip(whole.simulated.state_dict().items(), again.simulated.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


OPTIONS = {"observer": "minmax", "equalize": False, "correct_bias": False}
TRAINING = {"epochs": 2, "lr": 1e-2, "batch_size": 16}


def labelled():
    x = torch.cat(batches(4))
    return TensorDataset(x, x[:, 0].mean((1, 2)).gt(1).long())


def loss_of(program):
    x, y = labelled().tensors
    with torch.no_grad():
        return -float(nn.functional.cross_entropy(program(x), y))


def test_trainers_take_quantization_and_leave_the_model(tmp_path):
    model = trained(convolutional())
    weights = copy.deepcopy(model.state_dict())
    qat = QAT(torch.zeros(1, 3, 8, 8), batches(2), **OPTIONS)
    by_hand = bough.quantize(model, qat.example_inputs, qat.data, **OPTIONS)
    bough.distill(
        by_hand.simulated, model, TensorDataset(torch.cat(batches(4))), bough.Training(**TRAINING), distillation=DISTILLATION
    )
    done = bough.distill(
        model,
        model,
        TensorDataset(torch.cat(batches(4))),
        bough.Training(**TRAINING),
        distillation=DISTILLATION,
        quantization=qat,
    )
    for (name, a), b in zip(
        by_hand.retrained().model.state_dict().items(), done.quantized.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values(), strict=True))
    assert done.to_dict()["quantized"]["observer"] == "minmax"
    tuned = bough.finetune(model, labelled(), bough.Training(**TRAINING), evaluate=loss_of, quantization=qat)
    assert tuned.quantized.metric == pytest.approx(tuned.best, abs=0.02)
    assert tuned.quantized.metric > tuned.quantized.float_metric  # it was trained on these labels, the float model was not


def test_a_killed_run_with_quantization_goes_on_to_the_same_weights(tmp_path):
    model = trained(convolutional())
    qat = QAT(torch.zeros(1, 3, 8, 8), batches(2), **OPTIONS)

    def run(folder, qat=qat, kill=None):
        def callback(line):
            if line["step"] == kill:
                raise KeyboardInterrupt

        training = bough.Training(**TRAINING, folder=tmp_path / folder, save_every=1)
        return bough.finetune(model, labelled(), training, callback=callback, quantization=qat)

    whole = run("a").quantized.model.state_dict()
    with pytest.raises(KeyboardInterrupt):
        run("b", kill=3)
    again = run("b")
    assert again.resumed == 3
    assert all(torch.equal(a, b) for a, b in zip(whole.values(), again.quantized.model.state_dict().values(), strict=True))
    with pytest.raises(TrainingError, match="another quantization"):
        run("b", QAT(qat.example_inputs, qat.data, **{**OPTIONS, "observer": "mse"}))


def test_what_refers_to_the_float_model_is_refused():
    model = trained(convolutional())
    qat = QAT(torch.zeros(1, 3, 8, 8), batches(2))
    graph = bough.trace(model, torch.zeros(1, 3, 8, 8))
    lasso = bough.recovery.regularize.GroupLasso(graph, strength=0.1)
    for arguments in ({"optimizer": torch.optim.SGD(model.parameters(), 0.1)}, {"regularizers": [lasso]}):
        with pytest.raises(TrainingError, match=f"{next(iter(arguments))} and quantization exclude each other"):
            bough.finetune(model, labelled(), quantization=qat, **arguments)
