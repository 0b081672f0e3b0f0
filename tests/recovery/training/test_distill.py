"""Distillation: losses and distances against formulas by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    TensorDataset,
)

import bough
from bough.errors import PlanError, TrainingError
from bough.recovery import Distillation, Features, Training, distill, distillation_loss
from bough.recovery.training import batch_loss
from tests.trained import net, same, weights

pytest.importorskip("accelerate")


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
    distillation_ = Distillation(temperature=3.0, logits=0.7)
    distill(small, model, DataLoader(TensorDataset(x, y), 8), distillation=distillation_, callback=line.append)
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
    distillation_ = Distillation(logits=1.0, features=2.0, match=match)
    line = []
    done = distill(
        small, model, TensorDataset(x), Training(epochs=30, lr=0.02), distillation=distillation_, callback=line.append
    )
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


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_features_after_a_layer_that_is_left_out_have_the_student_s_names():
    torch.manual_seed(0)
    model, x = Blocks().eval(), torch.randn(6, 4)
    with torch.no_grad():
        for p in model.layers[1].down.parameters():
            p.zero_()  # so that all others give the very same without it
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=1.0, drop=["layers.1"])
    small, match = bough.cut(model, plan), Features(graph, ["layers.0", "layers.2"], plan=plan)
    with match.watch(small, model) as seen:
        small(x), model(x)
    assert seen[0].keys() == {"layers.0", "layers.1"}
    assert match(seen).item() == 0
    with pytest.raises(PlanError, match=r"leaves out layers\.1"):
        Features(graph, ["layers.1.up"], plan=plan)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o, self.f, self.g = (nn.Linear(a, b) for a, b in ((16, 16),) * 4 + ((16, 24), (24, 3)))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.g(self.f(self.o(x)).relu())


@pytest.mark.parametrize("ragged", [False, True])
def test_features_of_heads_whose_scale_is_folded(ragged):
    torch.manual_seed(0)
    model, x = Attending().eval(), torch.randn(3, 5, 16)
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=0.5, ragged=ragged)
    assert plan.scales
    assert bool(plan.ragged) == ragged
    if ragged:
        Features(graph, ["f"], plan=plan)  # its own units are cut alike
        with pytest.raises(PlanError, match="raggedly"):
            Features(graph, ["q"], plan=plan)
        return
    small = bough.cut(model, plan)
    for name in ("q", "k", "v"):  # which read what no cut changes
        match = Features(graph, [name], plan=plan)
        with match.watch(small, model) as seen:
            small(x), model(x)
        assert match(seen).item() == pytest.approx(0.0, abs=1e-12)


def test_labels_tell_where_classes_are():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, 7), torch.randint(0, 5, (4, 5))
    wanted = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(batch_loss(logits, (None, labels)), wanted)
    assert torch.allclose(batch_loss(logits.mT, (None, labels)), wanted)
    with pytest.raises(TrainingError, match="may be in dim 1 or in the last"):
        batch_loss(torch.randn(4, 5, 5), (None, labels))
    small, large, x = nn.Linear(3, 7), nn.Linear(3, 7), torch.randn(4, 5, 3)
    distillation_ = Distillation(logits=0.5)
    wanted = 0.5 * F.cross_entropy(small(x).mT, labels) + 0.5 * distillation_loss(small(x), large(x))
    done = distill(small, large, TensorDataset(x, labels), Training(batch_size=4), distillation=distillation_)
    assert done.epochs[0]["loss"] == pytest.approx(wanted.item(), rel=1e-5)
