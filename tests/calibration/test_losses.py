"""One loss for everything: (model, batch), (output, batch) and (output, labels) are distinguished and give the same."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bough
from bough import importance
from bough.calibration import Data, calling_convention
from bough.errors import ArgumentError, BoughError, TrainingError
from bough.recovery import Distillation, distill, finetune

pytest.importorskip("accelerate")

X = torch.randn(48, 4, generator=torch.Generator().manual_seed(3))
Y = (X[:, 0] > 0).long()
BATCHES = list(zip(X.split(16), Y.split(16), strict=True))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def of_model(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def of_output(output, batch):
    return F.cross_entropy(output, batch[1])


def annotated(m: nn.Module, b):
    return of_model(m, b)


def annotated_output(o: torch.Tensor, b):
    return of_output(o, b)


class Callable:
    def __call__(self, net, batch):
        return of_model(net, batch)


LOSSES = {
    "model": of_model, "output": of_output, "function of labels": F.cross_entropy, "module": nn.CrossEntropyLoss(),
    "annotated": annotated, "annotated output": annotated_output, "object": Callable(), "partial": functools.partial(of_model),
}  # fmt: skip


def test_what_tells_them_apart():
    kinds = {name: calling_convention(loss, "output") for name, loss in LOSSES.items()}
    assert kinds == {name: calling_convention(loss, "model") for name, loss in LOSSES.items()}
    assert set(kinds.values()) == {"model", "output", "labels"}
    for unknown in (lambda a, b: 0, lambda *args: 0, lambda: 0, max):
        assert [calling_convention(unknown, kind) for kind in ("model", "output")] == ["model", "output"]


@pytest.mark.parametrize("kind", ["Taylor", "GateTaylor", "OBD", "Fisher", "Sensitivity", "MaskedLoss", "Shapley"])
@pytest.mark.parametrize("name", LOSSES)
def test_criteria_take_all(kind, name):
    graph = bough.trace(net().eval(), X[:2])
    wanted = bough.score(graph, getattr(importance, kind)(of_model), BATCHES)
    found = bough.score(graph, getattr(importance, kind)(LOSSES[name]), BATCHES)
    assert all(np.allclose(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("name", LOSSES)
def test_training_takes_all(name):
    done = {}
    for loss in (None, LOSSES[name]):
        model = net()
        finetune(model, BATCHES, loss=loss)
        done[loss] = [p.clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(*done.values(), strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_distilling_takes_all(name):
    done = {}
    for loss in (None, LOSSES[name]):
        student, teacher = net(), nn.Linear(4, 2)
        nn.init.ones_(teacher.weight)
        distill(student, teacher, BATCHES, distillation=Distillation(logits=0.3), loss=loss)
        done[loss] = [p.clone() for p in student.parameters()]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*done.values(), strict=True))


def test_names_that_do_not_tell_are_as_each_function_has_them():
    graph = bough.trace(net().eval(), X[:2])
    bough.score(graph, importance.Taylor(lambda a, b: of_model(a, b)), BATCHES)
    finetune(net(), BATCHES, loss=lambda a, b: of_output(a, b))
    with pytest.raises(ArgumentError, match=r"called as loss\(model, batch\), fails .* names it `output`"):
        bough.score(graph, importance.Taylor(lambda a, b: of_output(a, b)), BATCHES)
    with pytest.raises(ArgumentError, match=r"called as loss\(output, batch\), fails .* names its first parameter `model`"):
        finetune(net(), BATCHES, loss=lambda a, b: of_model(a, b))


def test_labels_that_are_not_there_are_told():
    for batches in ([X], [(X, Y, Y)], [{"input": X}]):
        with pytest.raises(BoughError, match=r"loss\(output, labels\) needs batches that are pairs"):
            finetune(net(), batches, loss=F.cross_entropy)


class Again:
    """Can be gone through again, and has no length."""

    def __iter__(self):
        return iter(BATCHES)


class Items:
    """An old sequence."""

    def __getitem__(self, i):
        return BATCHES[i]

    def __len__(self):
        return len(BATCHES)


class Samples(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], Y[i]


FORMS = {
    "list": BATCHES, "tuple": tuple(BATCHES), "loader": DataLoader(TensorDataset(X, Y), 16), "iterable": Again(),
    "sequence": Items(), "data": Data(BATCHES), "data of a loader": Data(DataLoader(TensorDataset(X, Y), 16)),
    "data with a forward": Data([{"a": x, "b": y} for x, y in BATCHES], forward=lambda model, batch: model(batch["a"])),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_training_takes_batches_in_every_form(name):
    done = []
    for train in (BATCHES, FORMS[name]):
        model = net()
        named = "forward" in name and train is not BATCHES
        loss = (lambda output, batch: F.cross_entropy(output, batch["b"])) if named else None
        assert finetune(model, train, bough.Training(epochs=2), loss=loss).steps == 6
        distill(model, net(), train, distillation=Distillation(logits=1.0))
        done.append([p.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*done, strict=True))


def test_a_list_is_resumed_where_it_was(tmp_path):
    class Killed(Exception): ...

    def kill(line):
        if line["step"] == 4:
            raise Killed

    training = bough.Training(epochs=3, folder=tmp_path, save_every=1)
    with pytest.raises(Killed):
        finetune(net(), BATCHES, training, callback=kill)
    resumed, whole = net(), net()
    assert finetune(resumed, BATCHES, training).resumed == 4
    finetune(whole, BATCHES, bough.Training(epochs=3))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("wrong", [iter(BATCHES), (b for b in BATCHES), "batches", {"x": X}, X, 3, [1, 2], []])
def test_what_is_no_training_data_is_told(wrong):
    with pytest.raises(TrainingError, match=r"train (is|can)"):
        finetune(net(), wrong)


def test_a_dataset_gives_samples_everywhere():
    """Of samples, batches are made, for criteria as for training."""
    graph = bough.trace(net().eval(), X[:2])
    wanted = bough.score(graph, "wanda", DataLoader(Samples(), 64))
    for data in (Samples(), TensorDataset(X, Y), Data(TensorDataset(X))):
        found = bough.score(graph, "wanda", data)
        assert all(np.array_equal(found[n], wanted[n]) for n in wanted)
