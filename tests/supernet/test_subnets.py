"""A subnet of a supernet: what it computes, its gradients, and what it shares."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bough
from bough.calls import as_calls
from bough.errors import PlanError
from bough.tracing.capture.tree import Returned, state_names
from tests.supernet.models import inputs, nested, residual
from tests.zoo import randomize, small, small_recurrent, small_sequence, to_double

ZOO = {**small.ZOO, **small_recurrent.ZOO, **small_sequence.ZOO}
WITHOUT = {"chunk_and_slice"}  # nothing in it can be cut


def draws(net, n=2):
    rng = np.random.default_rng(0)
    return [net.smallest, *(net.sample(rng) for _ in range(n))]


def same(found, expected):
    for path, tensor in expected.items():
        torch.testing.assert_close(found[path], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(set(ZOO) - WITHOUT))
def test_the_order_changes_nothing_and_extracted_equals_the_supernet(name):
    torch.manual_seed(0)
    model, x = ZOO[name]()
    model, call = randomize(model.eval()), as_calls(to_double(x))[0]
    net = bough.supernet(model, to_double(x), importance=bough.importance.Random(1), depth=True)

    def outputs(module):
        torch.manual_seed(0)
        with torch.no_grad():
            return Returned.of(call(module), state_names(module, module)).compared()

    same(outputs(net.model), outputs(model))
    subnet = net.sample(0)
    small = net.extract(subnet)
    with net.at(subnet) as module:
        same(outputs(small.model), outputs(module))
    assert all(small.plan.groups[n][0] == k for n, k in subnet.counts.items())


def test_gradients_are_those_of_the_cut_model_at_the_units_kept():
    net, x = nested(), inputs()
    for subnet in draws(net, 2):
        net.zero_grad()
        with net.at(subnet):
            net(x).square().sum().backward()
        small = net.extract(subnet)
        small.model(x).square().sum().backward()
        expected = dict(small.model.named_parameters())
        left = [i for i in range(3) if f"blocks.{i}" not in subnet.dropped]
        for name, p in net.model.named_parameters():
            part = name.split(".")
            if part[0] == "blocks" and int(part[1]) not in left:
                assert p.grad is None
                continue
            cut = ".".join([part[0], str(left.index(int(part[1]))), *part[2:]]) if part[0] == "blocks" else name
            whole = torch.zeros_like(p)
            slices = [torch.tensor(small.plan.kept.get(name, {}).get(d, range(n))) for d, n in enumerate(p.shape)]
            whole[torch.meshgrid(*slices, indexing="ij")] = expected[cut].grad
            torch.testing.assert_close(p.grad, whole)


def test_a_subnet_keeps_the_first_units():
    net = nested()
    subnet = net.subnet({"stem": 2, "blocks.0.up": 5})
    small = net.extract(subnet).model
    torch.testing.assert_close(small.stem.weight, net.model.stem.weight[:2], rtol=0, atol=0)
    torch.testing.assert_close(small.blocks[0].up.weight, net.model.blocks[0].up.weight[:5, :2], rtol=0, atol=0)
    assert small.stem.weight.data_ptr() != net.model.stem.weight.data_ptr()


def test_steps_of_an_optimizer_show_in_the_next_subnet():
    net, x = nested(), inputs()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    subnet = net.smallest
    for _ in range(2):
        with net.at(subnet):
            net(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        with net.at(subnet):
            torch.testing.assert_close(net(x), net.extract(subnet).model(x), rtol=0, atol=1e-6)


def test_outside_of_a_subnet_the_whole_model_runs():
    model, net, x = residual(), nested(), inputs()
    with net.at({"stem": 3}), net.at({"stem": 4}):
        inner = net(x)
    torch.testing.assert_close(net(x), model(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(inner, net.extract({"stem": 4}).model(x), rtol=0, atol=1e-6)
    with pytest.raises(ZeroDivisionError), net.at(net.smallest):
        raise ZeroDivisionError
    torch.testing.assert_close(net(x), model(x), rtol=0, atol=1e-6)


def test_a_subnet_in_training_leaves_the_statistics_of_the_supernet():
    net, x = nested().train(), inputs(32)
    before = {n: b.clone() for n, b in net.named_buffers()}
    with net.at(net.smallest) as module:
        net(x)
        assert all(m.training for m in module.modules())
        fresh = module.blocks[0].norm.running_mean if len(module.blocks) else None
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())
    assert fresh is None or not torch.equal(fresh, before["model.blocks.0.norm.running_mean"][: len(fresh)])
    with net.at(net.largest):
        net(x)
    assert not all(torch.equal(b, before[n]) for n, b in net.named_buffers())


def test_an_instance_of_the_whole_model_has_statistics_of_its_own():
    net = nested()
    before = {n: b.clone() for n, b in net.named_buffers()}
    module = net.instance(net.largest)
    torch.testing.assert_close(module(inputs()), net(inputs()), rtol=0, atol=0)
    bough.recalibrate(module, [inputs(32)])
    assert all(torch.equal(b, before[n]) for n, b in net.named_buffers())


def test_modes_are_those_of_the_supernet():
    net = nested().train()
    net.model.blocks[1].norm.eval()
    with net.at({"stem": 3}, drop=["blocks.2"]) as module:
        assert [b.norm.training for b in module.blocks] == [True, False]
        net.eval()
        assert not any(m.training for m in module.modules())


def test_the_statistics_of_an_extracted_model_are_those_on_data():
    net, data = nested(), [inputs(64)]
    small = net.extract({"stem": 3}, data=data).model
    hand = bough.recalibrate(net.extract({"stem": 3}).model, data)
    torch.testing.assert_close(small.state_dict(), hand.state_dict())


def test_an_extracted_model_is_saved_and_loaded(tmp_path):
    net, x = nested(), inputs()
    found = net.extract({"stem": 3}, drop=["blocks.1"])
    bough.save(found, tmp_path)
    again = bough.load(tmp_path, residual)
    torch.testing.assert_close(again(x), found.model(x), rtol=0, atol=0)


def test_tied_weights_and_shared_modules_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.up, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, x):
            return self.out(self.up(self.up(self.embedding(x))))

    net = bough.supernet(Tied(), torch.arange(7).view(1, 7))
    for subnet in draws(net):
        with net.at(subnet) as module:
            assert module.out.weight is module.embedding.weight
            here = net(torch.arange(7).view(1, 7))
        torch.testing.assert_close(here, net.extract(subnet).model(torch.arange(7).view(1, 7)))


def test_a_supernet_is_copied_with_its_weights():
    net, x = nested(), inputs()
    other = copy.deepcopy(net)
    with torch.no_grad():
        next(other.parameters()).zero_()
    with net.at({"stem": 3}), other.at({"stem": 3}):
        assert not torch.equal(net(x), other(x))


@pytest.mark.parametrize(
    ("counts", "drop", "message"),
    [
        ({"sten": 3}, (), "'sten', which is no group of the supernet; did you mean 'stem'?"),
        ({"stem": 7}, (), "no subnet has stem=7; the widths are stem: 6, 5, 4, 3, 2"),
        ({"stem": 1}, (), "no subnet has stem=1"),
        ({}, ["blocks.0"], "drop: 'blocks.0' is no elastic layer of the supernet"),
        ({}, ["head"], "drop: 'head' is no elastic layer"),
    ],
)
def test_subnets_that_there_are_not(counts, drop, message):
    with pytest.raises(PlanError, match=message), nested().at(counts, drop=drop):
        pass
