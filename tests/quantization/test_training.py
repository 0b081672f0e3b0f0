"""Quantization-aware training by the trainers of recovery."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import bough
from tests.exporting.models import convolutional
from tests.quantization.test_quantize import batches, trained

pytest.importorskip("torchao", reason="quantize needs torchao: pip install -e .[quantize]")
HOW = bough.recovery.Distillation(logits=1.0, temperature=1.0)


@pytest.fixture(scope="module")
def quantized():
    """A net whose ranges are far too wide, by values that come once."""
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
    bough.distill(done.simulated, model, TensorDataset(x), training, distillation=HOW)
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
        bough.distill(done.simulated, model, TensorDataset(x), training, distillation=HOW, callback=kill)
    again = copy.deepcopy(quantized[1])
    found = bough.distill(again.simulated, model, TensorDataset(x), training, distillation=HOW)
    assert found.resumed == 6
    for (name, a), b in zip(whole.simulated.state_dict().items(), again.simulated.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
