"""What the shortest calls of finetune and distill do."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import bough
from bough.recovery import Training, distill, distillation_loss, finetune

pytest.importorskip("accelerate")


def test_distillation_without_options_gives_the_student_the_answers_of_its_teacher():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    x, unseen = torch.randn(2048, 8), torch.randn(2048, 8)

    def labels(x):
        return (x[:, :4] * x[:, 4:]).argmax(1)

    finetune(model, TensorDataset(x, labels(x)), Training(epochs=15, lr=3e-3, batch_size=32))
    small = bough.prune(model.eval(), x[:1], bough.Budget(macs="25%")).model

    def agreement(net):
        return float((net(unseen).argmax(1) == model(unseen).argmax(1)).float().mean())

    before = agreement(small)
    distill(small, model, TensorDataset(x, labels(x)))
    assert before < 0.7
    assert agreement(small) > 0.85


def test_a_step_is_no_longer_than_the_learning_rate_by_default_however_large_the_gradient():
    net = nn.Linear(4, 3)
    before = copy.deepcopy(net)
    huge = 1e6
    training = Training(epochs=1, lr=0.1, optimizer="sgd", momentum=0.0, weight_decay=0.0, warmup=0, batch_size=8)
    finetune(net, TensorDataset(torch.randn(8, 4)), training, loss=lambda output, batch: huge * output.square().mean())
    with torch.no_grad():
        moved = torch.cat([(a - b).flatten() for a, b in zip(net.parameters(), before.parameters(), strict=True)]).norm()
    assert moved.item() == pytest.approx(training.lr, rel=1e-4)


def test_the_loss_and_the_options_of_distillation_have_one_default_temperature():
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    temperature = bough.recovery.Distillation().temperature
    assert torch.equal(distillation_loss(student, teacher), distillation_loss(student, teacher, temperature=temperature))
