"""The law: where removing units is exact, training the cut model goes on as training the uncut one would have."""

import copy
import functools
from collections import OrderedDict

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.optim import lr_scheduler, swa_utils

import bough
from bough.cutting import transfer_optimizer
from bough.errors import PlanError

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, 0.05),
    "SGD momentum": lambda p: optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD maximize": lambda p: optim.SGD(p, 0.01, momentum=0.9, dampening=0.5, maximize=True, foreach=True),
    "SGD fused": lambda p: optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "Adam": lambda p: optim.Adam(p, 0.01),
    "Adam amsgrad": lambda p: optim.Adam(p, 0.01, amsgrad=True, weight_decay=0.01, foreach=True),
    "Adam fused": lambda p: optim.Adam(p, 0.01, amsgrad=True, fused=True),
    "AdamW": lambda p: optim.AdamW(p, 0.01, maximize=True),
    "AdamW fused": lambda p: optim.AdamW(p, 0.01, fused=True),
    "Adamax": lambda p: optim.Adamax(p, 0.01),
    "NAdam": lambda p: optim.NAdam(p, 0.01, decoupled_weight_decay=True, weight_decay=0.01),
    "RAdam": lambda p: optim.RAdam(p, 0.01, foreach=True),
    "RMSprop": lambda p: optim.RMSprop(p, 0.01, centered=True, momentum=0.9),
    "Rprop": lambda p: optim.Rprop(p, 0.01),
    "Adagrad": lambda p: optim.Adagrad(p, 0.01, initial_accumulator_value=0.1),
    "Adagrad fused": lambda p: optim.Adagrad(p, 0.01, fused=True),
    "Adadelta": lambda p: optim.Adadelta(p, 1.0),
    "ASGD": lambda p: optim.ASGD(p, 0.05, t0=1),
    # the weight's and the update's mean squares, which count what is removed, are kept out of it by eps and d
    "Adafactor": lambda p: optim.Adafactor(p, 1e-5, eps=(1e-30, 1e3), d=1e9),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Nets as small as these only wait for threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """Convolution, batch norm, a tied pair of layers; a group per kind of width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.conv2 = nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)
        self.one, self.two, self.stem, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(8, 12), nn.Linear(12, 3)
        self.two.weight = self.one.weight
        self.two.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = F.relu(self.stem(F.relu(self.conv2(x)).mean((2, 3))))
        return self.head(F.relu(self.two(F.relu(self.one(x)))))


def half(model: nn.Module, x: torch.Tensor, **options) -> bough.Plan:
    graph = bough.trace(model, x)
    return bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5, **options)


@functools.cache
def masked_net() -> tuple[nn.Module, bough.Plan, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(7, 2, 7, 7).double()
    plan = half(model, x)
    assert len([n for n, (kept, size) in plan.groups.items() if kept < size]) == 3
    return bough.mask(model, plan), plan, x


def start(make=OPTIMIZERS["Adam"], named: bool = False):
    """A masked model and an optimizer of it, trained for three steps; two groups, and one parameter that is not trained."""
    model, plan, x = masked_net()
    model = copy.deepcopy(model)
    kind = (lambda m: list(m.named_parameters())) if named else (lambda m: list(m.parameters()))
    optimizer = make([
        {"params": kind(model.conv) + kind(model.bn), "lr": 0.02},
        {"params": kind(model.conv2) + kind(model.one) + kind(model.two)[1:] + kind(model.stem) + kind(model.head)[:1]},
    ])  # fmt: skip
    train(model, optimizer, x)
    return model, optimizer, plan, x


def train(model: nn.Module, optimizer: optim.Optimizer, x: torch.Tensor, steps: int = 3, after=lambda: None) -> None:
    for i in range(steps):
        optimizer.zero_grad()
        loss = (model(x * (1 + 0.1 * i)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        after()


def projection(model: nn.Module, plan: bough.Plan):
    """Sets what the plan removes of the model's parameters to zero."""

    def project() -> None:
        with torch.no_grad():
            for name, p in model.named_parameters():
                for dim, kept in plan.kept.get(name, {}).items():
                    p.index_fill_(dim, torch.tensor(sorted(set(range(p.shape[dim])) - set(kept))), 0)

    return project


def sliced(model: nn.Module, plan: bough.Plan) -> dict[str, torch.Tensor]:
    """The kept part of a model's parameters."""
    found = {n: p.detach() for n, p in model.named_parameters()}
    for name, dims in plan.kept.items():
        for dim, kept in dims.items() if name in found else ():
            found[name] = found[name].index_select(dim, torch.tensor(kept))
    return found


def distance(small: nn.Module, model: nn.Module, plan: bough.Plan) -> float:
    expected, found = sliced(model, plan), dict(small.named_parameters())
    assert expected.keys() == found.keys()
    return max(float((found[n].detach() - p).abs().max()) for n, p in expected.items())


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_it_would_have(name, in_place):
    model, optimizer, plan, x = start(OPTIMIZERS[name])
    reference, other = copy.deepcopy((model, optimizer))
    small = (bough.cut_ if in_place else bough.cut)(model, plan)
    assert transfer_optimizer(optimizer, plan) is optimizer
    states = {id(p) for p in small.parameters()}
    assert all(id(p) in states for group in optimizer.param_groups for p in group["params"])
    assert all(id(p) in states for p in optimizer.state)
    before = copy.deepcopy(small)
    train(small, optimizer, x)
    train(reference, other, x, after=projection(reference, plan))
    assert distance(small, reference, plan) < 1e-12
    assert all(not torch.equal(p, q) for p, q in zip(small.conv.parameters(), before.conv.parameters(), strict=True))


def test_muon_goes_on_within_the_rounding_of_its_bfloat16():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(16, 12, bias=False), nn.ReLU(), nn.Linear(12, 4, bias=False)).double(),
        torch.randn(9, 16).double(),
    )
    plan = half(model, x)
    model = bough.mask(model, plan)
    optimizer = optim.Muon(model.parameters(), 0.01)
    train(model, optimizer, x)
    reference, other = copy.deepcopy((model, optimizer))
    small = bough.cut(model, plan)
    train(small, transfer_optimizer(optimizer, plan), x)
    train(reference, other, x, after=projection(reference, plan))
    assert distance(small, reference, plan) < 3 * 0.01 * 2**-6
    assert distance(small, model, plan) > 0.01


def test_sparse_gradients():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(9, 8, sparse=True), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.words(x))

    torch.manual_seed(0)
    model, x = Words().double(), torch.tensor([[1, 2, 5]])
    plan = half(model, x)
    model = bough.mask(model, plan)
    optimizer = optim.SparseAdam(model.words.parameters(), 0.01)

    def steps(m: nn.Module, o: optim.Optimizer) -> None:
        for _ in range(3):
            m.zero_grad()
            m(x).square().mean().backward()
            o.step()

    steps(model, optimizer)
    reference, other = copy.deepcopy((model, optimizer))
    bough.cut_(model, plan)
    steps(model, transfer_optimizer(optimizer, plan))
    steps(reference, other)
    assert model.words.weight.grad.is_sparse
    assert distance(model, reference, plan) < 1e-12


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.relu(self.up(self.norm(x))))


def test_parameters_of_layers_left_out_are_dropped_and_the_rest_renamed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), Block(), Block(), nn.Linear(6, 2))
    model, x = nn.Sequential(OrderedDict(net=net)).double(), torch.randn(5, 3).double()
    for p in (*net[1].up.parameters(), *net[1].down.parameters()):
        nn.init.zeros_(p)
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=1.0, drop=("net.1",))
    groups = [{"params": [(f"model.net.{n}", p) for n, p in net[i].named_parameters(prefix=str(i))]} for i in range(4)]
    optimizer = optim.AdamW(groups, 0.01, weight_decay=0.0)
    train(model, optimizer, x)
    reference, other = copy.deepcopy((model, optimizer))
    small = bough.cut(model, plan)
    train(small, transfer_optimizer(optimizer, plan), x)
    train(reference, other, x)
    assert [len(g["params"]) for g in optimizer.param_groups] == [2, 0, 5, 2]
    assert optimizer.param_groups[2]["param_names"][0] == "model.net.1.norm.weight"
    assert optimizer.param_groups[3]["param_names"] == ["model.net.2.weight", "model.net.2.bias"]
    assert len(optimizer.state) == 9
    for i, j in enumerate((0, 2, 3)):
        for p, q in zip(small.net[i].parameters(), reference.net[j].parameters(), strict=True):
            assert torch.allclose(p, q, rtol=0, atol=1e-12)


SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, [lambda n: 0.9**n, lambda n: 0.8**n]),
    "cosine": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "sequence": lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [4]),
    "swa": lambda o: swa_utils.SWALR(o, 0.01, 3),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on(name):
    model, optimizer, plan, x = start(OPTIMIZERS["SGD momentum"])
    scheduler = SCHEDULERS[name](optimizer)
    train(model, optimizer, x, after=scheduler.step)
    reference, other, its = copy.deepcopy((model, optimizer, scheduler))
    small = bough.cut(model, plan)
    train(small, transfer_optimizer(optimizer, plan), x, after=scheduler.step)

    def after() -> None:
        its.step()
        projection(reference, plan)()

    assert its.optimizer is other
    train(reference, other, x, after=after)
    assert distance(small, reference, plan) < 1e-12
    assert scheduler.state_dict().keys() == its.state_dict().keys()
    assert scheduler.get_last_lr() == its.get_last_lr()
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == [
        {k: v for k, v in g.items() if k != "params"} for g in other.param_groups
    ]


def test_averaged_models_are_cut_by_the_same_plan():
    model, optimizer, plan, x = start()
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
    train(model, optimizer, x, after=lambda: average.update_parameters(model))
    reference, other, its = copy.deepcopy((model, optimizer, average))
    small, small_average = bough.cut(model, plan), bough.cut(average, plan)
    assert type(small_average) is swa_utils.AveragedModel
    assert small_average.n_averaged == 3
    train(small, transfer_optimizer(optimizer, plan), x, after=lambda: small_average.update_parameters(small))
    train(reference, other, x, after=lambda: its.update_parameters(reference))
    assert distance(small_average.module, its.module, plan) < 1e-12


def test_a_gradient_scaler_and_a_wrapped_optimizer_go_on():
    class Wrapped(optim.Optimizer):
        """As accelerate's: everything is the inner optimizer's."""

        def __init__(self, optimizer: optim.Optimizer) -> None:
            self.optimizer = optimizer

        state = property(lambda self: self.optimizer.state)
        param_groups = property(lambda self: self.optimizer.param_groups)

        def step(self) -> None:
            scaler.step(self.optimizer)
            scaler.update()

    model, optimizer, plan, x = start()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    small = bough.cut(model, plan)
    transfer_optimizer(Wrapped(optimizer), plan)
    before = copy.deepcopy(dict(small.named_parameters()))
    scaler.scale(small(x).square().mean()).backward()
    Wrapped(optimizer).step()
    assert all(not torch.equal(p, before[f"conv2.{n}"]) for n, p in small.conv2.named_parameters())
    with pytest.raises(PlanError, match="LBFGS keeps one flat history"):
        transfer_optimizer(Wrapped(optim.LBFGS(model.parameters())), plan)


def test_optimizers_inside_others_are_carried_along():
    class Lookahead(optim.Optimizer):
        """Keeps state of its own beside that of the optimizer it wraps, whose groups it shares."""

        def __init__(self, base: optim.Optimizer) -> None:
            super().__init__(base.param_groups, {})
            self.base, self.param_groups = base, base.param_groups
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["slow"] = p.detach().clone()

        def step(self) -> None:
            self.base.step()
            with torch.no_grad():
                for p, state in self.state.items():
                    p.copy_(state["slow"].lerp_(p, 0.5))

    model, optimizer, plan, x = start(lambda groups: Lookahead(optim.Adam(groups, 0.01)))
    reference, base, slow = copy.deepcopy((model, optimizer.base, dict(optimizer.state)))
    other = Lookahead(base)
    other.state.update(slow)
    small = bough.cut(model, plan)
    train(small, transfer_optimizer(optimizer, plan), x)
    train(reference, other, x, after=projection(reference, plan))
    assert distance(small, reference, plan) < 1e-12
    assert len(optimizer.base.state) == 10
    assert all(p in optimizer.state for p in optimizer.base.state)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.q, self.k, self.v, self.out = (nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@functools.cache
def scaled_net() -> tuple[nn.Module, bough.Plan]:
    torch.manual_seed(0)
    model = Attention().double()
    plan = half(model, torch.randn(2, 3, 8).double())
    assert plan.scales
    return model, plan


SCALED = {  # no eps, so that units are all that is in the state
    "SGD": lambda p, c: optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p, c: optim.Adam(p, 0.1, amsgrad=True),
    "Adamax": lambda p, c: optim.Adamax(p, 0.1, eps=0.0),
    "RMSprop": lambda p, c: optim.RMSprop(p, 0.1, eps=0.0, momentum=0.9),
    "Centered": lambda p, c: optim.RMSprop(p, 0.1, eps=0.0, centered=True),
    "Adagrad": lambda p, c: optim.Adagrad(p, 0.1, eps=0.0),
    "Rprop": lambda p, c: optim.Rprop(p, 0.1 * c),
    "Adafactor": lambda p, c: optim.Adafactor(p, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_state_of_scaled_weights_is_what_their_own_gradients_would_have_made(name):
    """w' = c w has the gradient g / c: an optimizer that was given g / c from the start is the reference."""
    model, plan = scaled_net()
    model = copy.deepcopy(model)
    small = bough.cut(model, plan)
    scale = plan.scales[0]
    old, new = model.get_parameter(scale.name), small.get_parameter(scale.name)
    assert len(scale.indices) == old.shape[scale.dim]
    assert scale.factor != 1
    optimizer, other = SCALED[name]([old], 1.0), SCALED[name]([new], scale.factor)
    for _ in range(4):
        gradient = torch.outer(torch.randn(old.shape[0]), torch.randn(8)).double() if old.ndim > 1 else torch.randn_like(old)
        for dim, kept in plan.kept[scale.name].items():
            gradient.index_fill_(dim, torch.tensor(sorted(set(range(old.shape[dim])) - set(kept))), 0)
        old.grad = gradient
        for dim, kept in plan.kept[scale.name].items():
            gradient = gradient.index_select(dim, torch.tensor(kept))
        new.grad = gradient / scale.factor
        optimizer.step()
        other.step()
    transfer_optimizer(optimizer, plan)
    found, expected = optimizer.state[new], other.state[new]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=1e-10, atol=0), key


@pytest.mark.parametrize("keys", [("row_var", "col_var"), ("exp_avg_sq_row", "exp_avg_sq_col")])
@pytest.mark.parametrize("name", ["conv2.weight", "stem.weight", "one.weight"])
def test_factored_moments_are_the_means_of_the_kept_part(name, keys):
    """Of a moment that is a product of rows and columns, wherever what is removed is not zero."""
    model, plan, _ = masked_net()
    weight = model.get_parameter(name)
    optimizer = optim.SGD(model.parameters(), 0.1)
    moment = torch.rand(*weight.shape[:-1], 1).double() * torch.rand(*weight.shape[:-2], 1, weight.shape[-1]).double()
    keepdim = keys[0] == "row_var"
    optimizer.state[weight].update({k: moment.mean(-1 - i, keepdim=keepdim) for i, k in enumerate(keys)})
    small = bough.cut(model, plan)
    transfer_optimizer(optimizer, plan)
    for dim, kept in plan.kept[name].items():
        moment = moment.index_select(dim, torch.tensor(kept))
    for i, k in enumerate(keys):
        found, expected = optimizer.state[small.get_parameter(name)][k], moment.mean(-1 - i, keepdim=keepdim)
        assert torch.allclose(found, expected, rtol=1e-12, atol=0)
        assert found.shape == expected.shape


def unchanged(optimizer: optim.Optimizer):
    return [list(map(id, g["params"])) for g in optimizer.param_groups], {
        id(p): {k: id(v) for k, v in s.items()} for p, s in optimizer.state.items()
    }


def test_state_of_unknown_shape_is_refused_and_nothing_changes():
    model, optimizer, plan, _ = start()
    optimizer.state[model.stem.weight]["preconditioner"] = torch.eye(12)
    before = unchanged(optimizer)
    bough.cut(model, plan)
    small = bough.cut(model, plan)
    with pytest.raises(
        PlanError, match=r"Adam's state 'preconditioner' of stem.weight has shape \[12, 12\].*Nothing was changed"
    ):
        transfer_optimizer(optimizer, plan)
    assert unchanged(optimizer) == before
    del optimizer.state[model.stem.weight]["preconditioner"]
    transfer_optimizer(optimizer, plan)
    assert small.stem.weight in optimizer.state
    optimizer.state.clear()
    with pytest.raises(PlanError, match="holds no parameter that was cut by this plan"):
        transfer_optimizer(optimizer, plan)


def test_state_of_unknown_kind_of_a_scaled_weight_is_refused():
    model, plan = scaled_net()
    optimizer = optim.SGD(model.parameters(), 0.1)
    small = bough.cut(model, plan)
    weight = model.get_parameter(plan.scales[0].name)
    optimizer.state[weight]["memory"] = torch.zeros_like(weight)
    with pytest.raises(PlanError, match="folds a factor into"):
        transfer_optimizer(optimizer, plan)
    assert small is not model


def test_twice_in_place_is_told():
    model, optimizer, plan, _ = start()
    bough.cut_(model, plan)
    transfer_optimizer(optimizer, plan)
    with pytest.raises(PlanError, match="was transferred already"):
        transfer_optimizer(optimizer, plan)


def test_a_model_that_is_gone_is_told():
    model, optimizer, plan, _ = start()
    bough.cut(model, plan)
    with pytest.raises(PlanError, match="is gone"):
        transfer_optimizer(optimizer, plan)


def test_of_several_cut_copies_the_plan_chooses():
    model, optimizer, plan, x = start()
    first = bough.cut(model, plan)
    graph = bough.trace(model, x)
    second = bough.cut(model, bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.25))
    transfer_optimizer(optimizer, bough.Plan.from_json(plan.to_json()))
    assert optimizer.param_groups[0]["params"][0] is first.conv.weight
    assert second.conv.out_channels == 2


def test_cuts_one_after_another_and_parameters_of_others():
    model, optimizer, plan, x = start()
    other = nn.Linear(2, 2).double()
    optimizer.add_param_group({"params": other.parameters(), "lr": 1.0})
    for _ in range(2):
        bough.cut_(model, plan)
        transfer_optimizer(optimizer, plan)
        train(model, optimizer, x)
        plan = half(model, x)
    assert model.conv.out_channels == 2
    assert optimizer.state[model.conv.weight]["exp_avg"].shape == model.conv.weight.shape
    assert optimizer.param_groups[2]["params"] == list(other.parameters())


def test_names_follow_and_checkpoints_of_the_optimizer_load():
    model, optimizer, plan, x = start(named=True)
    names = [g["param_names"] for g in copy.deepcopy(optimizer.param_groups)]
    small = bough.cut(model, plan)
    transfer_optimizer(optimizer, plan)
    assert [g["param_names"] for g in optimizer.param_groups] == names
    again = copy.deepcopy(small)
    params = dict(zip(map(id, small.parameters()), again.parameters(), strict=True))
    fresh = optim.Adam(
        [
            {"params": [(n, params[id(p)]) for n, p in zip(g["param_names"], g["params"], strict=True)]}
            for g in optimizer.param_groups
        ]
    )
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(small, optimizer, x)
    train(again, fresh, x)
    assert all(torch.equal(p, q) for p, q in zip(small.parameters(), again.parameters(), strict=True))
