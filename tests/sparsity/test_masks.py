"""Masks that are attached hold through any training, keep the optimizer, and leave an ordinary module."""

import copy

import pytest
import torch
from torch import nn

import bough
from bough.recovery import magnitude_masks
from bough.sparsity import GradualPruning, attach_masks_, attached_masks, detach_masks_, sparsify
from tests.sparsity.nets import Tied, batches, mlp

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


def train(net, optimizer, steps=5):
    for x in (batches() * steps)[:steps]:
        optimizer.zero_grad()
        (net(x) - x[:, :4]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_keeps_zeros_zero(kind):
    sparse = sparsify(mlp(), torch.randn(2, 8), 0.6)
    before = sparse.model[0].weight.detach().clone()
    train(sparse.model, OPTIMIZERS[kind](sparse.model.parameters()))
    for name, mask in sparse.masks.items():
        assert bool((sparse.model[int(name[0])].weight[~mask] == 0).all())
    assert not torch.equal(sparse.model[0].weight, before)
    plain = sparse.remove()
    assert set(plain.state_dict()) == set(mlp().state_dict())
    assert all(bool((plain[int(n[0])].weight[~m] == 0).all()) for n, m in sparse.masks.items())


def test_the_optimizer_and_its_state_stay():
    net = mlp()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    train(net, optimizer, 2)
    stored = [id(p) for p in net.parameters()]
    attach_masks_(net, magnitude_masks(net, 0.5))
    assert {id(p) for p in net.parameters()} == set(stored)
    assert set(optimizer.state) == set(net.parameters())
    train(net, optimizer, 2)
    detach_masks_(net)
    assert [id(p) for p in net.parameters()] == stored
    train(net, optimizer, 1)


def test_attached_masks_train_as_those_of_an_optimizer():
    """Both ways to keep one kind of masks give the same weights (without decay, which acts on what masks hide)."""
    net = mlp()
    masks = magnitude_masks(net, 0.4)
    attached, hooked = attach_masks_(copy.deepcopy(net), masks), copy.deepcopy(net)
    regularizer = bough.recovery.Sparse(hooked, masks)
    for model in (attached, hooked):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        if model is hooked:
            regularizer.attach(optimizer)
        train(model, optimizer)
    assert all(torch.allclose(a, b) for a, b in zip(detach_masks_(attached).parameters(), hooked.parameters(), strict=True))


def test_masks_round_trip():
    net = mlp()
    masks = magnitude_masks(net, 0.5)
    found = attached_masks(attach_masks_(net, masks))
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[n], masks[n]) for n in masks)
    assert attached_masks(detach_masks_(net)) == {}


def test_shared_parameters_are_masked_everywhere():
    net = Tied()
    attach_masks_(net, magnitude_masks(net, 0.5, names=["embed.weight"]))
    assert torch.equal(net.embed.weight, net.head.weight)
    assert list(attached_masks(net)) == ["embed.weight"]
    detach_masks_(net)
    assert net.embed.weight is net.head.weight


def test_copies_keep_their_masks():
    net = attach_masks_(mlp(), magnitude_masks(mlp(), 0.5))
    other = copy.deepcopy(net)
    detach_masks_(net)
    x = torch.randn(2, 8)
    assert torch.equal(other(x), net(x))
    assert type(net[0]) is nn.Linear
    assert len(attached_masks(other)) == 3


def test_masks_of_recurrent_layers_are_refused():
    net = nn.LSTM(4, 4)
    with pytest.raises(bough.errors.PlanError, match=r"recovery\.Sparse"):
        attach_masks_(net, {"weight_ih_l0": torch.ones(16, 4, dtype=torch.bool)})


@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_gradual_pruning_reaches_its_share(method):
    net = mlp()
    gradual = GradualPruning(bough.trace(net, torch.randn(1, 8)), 0.8, steps=8, updates=4, method=method)
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    attached = gradual.attach(optimizer)
    shares = []
    for _ in range(4):
        train(net, optimizer, 2)
        weights = [net[i].weight for i in (0, 2, 4)]
        shares.append(sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights))
    assert shares == pytest.approx(bough.recovery.cubic(0.2, 4), abs=0.002)
    assert gradual.settled
    train(net, optimizer, 3)
    assert all(bool((net[int(n[0])].weight[~m] == 0).all()) for n, m in gradual.masks.items())
    attached.remove()


def test_movement_lets_elements_come_back():
    """An element whose gradient points away from zero gains score while it is masked."""
    net = nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([[1.0, 1.0]])
    gradual = GradualPruning(
        bough.trace(net, torch.randn(1, 2)), 0.5, steps=2, updates=2, method="movement", schedule=lambda keep, n: [0.5, 0.5]
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    gradual.attach(optimizer)
    for gradient in ([0.0, 1.0], [0.0, -3.0]):
        net.weight.grad = torch.tensor([gradient])
        optimizer.step()
        last = net.weight.detach().clone()
    assert last.tolist() == [[0.0, 1.0]]


def test_an_interrupted_gradual_pruning_goes_on():
    x = torch.randn(1, 8)
    whole, halves = mlp(), mlp()
    for net, parts in ((whole, [6]), (halves, [3, 3])):
        optimizer, state = torch.optim.SGD(net.parameters(), 0.1), None
        for steps in parts:
            gradual = GradualPruning(bough.trace(net, x), 0.7, steps=6, updates=3, method="movement")
            if state is not None:
                gradual.load_state_dict(state)
            attached = gradual.attach(optimizer)
            for _ in range(steps):
                optimizer.zero_grad()
                (net(batches()[0])).square().mean().backward()
                optimizer.step()
            attached.remove()
            state = gradual.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


def test_gradual_pruning_in_finetune():
    net = mlp()
    gradual = GradualPruning(bough.trace(net, torch.randn(1, 8)), 0.5, steps=4, updates=2)
    data = torch.utils.data.TensorDataset(torch.cat(batches()), torch.randint(0, 4, (128,)))
    bough.finetune(net, data, bough.Training(epochs=2, batch_size=32), loss=nn.CrossEntropyLoss(), regularizers=(gradual,))
    assert gradual.settled
    assert sum(int(net[i].weight.count_nonzero()) for i in (0, 2, 4)) == 224
