"""A cut changes widths and nothing else: mode, hooks, ties, parametrizations, dtypes, devices, what modules carry."""

import copy
import functools
import gc
import pickle
import threading
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import bough
from bough.errors import ArgumentError, PlanError, TraceError
from tests.zoo.small import ZOO

X = torch.linspace(-1, 1, 12).view(3, 4)
CUTS = {"copy": bough.cut, "in place": bough.cut_}


@pytest.fixture(params=CUTS)
def cut(request):
    return CUTS[request.param]


def mlp(hidden: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(hidden or nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def half(model: nn.Module, x: object = X, keep: float = 0.5) -> bough.Plan:
    graph = bough.trace(model, x)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=keep)
    assert plan.kept
    return plan


# hooks


def test_hooks_of_modules_and_tensors(cut):
    model, seen = mlp(), []
    layer = model[0]
    layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(("pre", m.out_features)), with_kwargs=True)
    layer.register_forward_hook(lambda m, a, out: seen.append(("forward", tuple(out.shape))))
    layer.register_full_backward_pre_hook(lambda m, g: seen.append(("backward pre", tuple(g[0].shape))))
    layer.register_full_backward_hook(lambda m, gi, go: seen.append(("backward", tuple(go[0].shape))))
    layer.weight.register_hook(lambda g: seen.append(("weight", tuple(g.shape))))
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(("accumulated", tuple(p.grad.shape))))
    plan, x = half(model), X.clone().requires_grad_()
    seen.clear()
    small = cut(model, plan)
    small(x).sum().backward()
    assert sorted(seen) == [
        ("accumulated", (4, 4)), ("backward", (3, 4)), ("backward pre", (3, 4)), ("forward", (3, 4)), ("pre", 4),
        ("weight", (4, 4)),
    ]  # fmt: skip
    if small is not model:
        assert layer.weight.grad is None
        seen.clear()
        model(x).sum().backward()
        assert len(seen) == 6
        assert ("weight", (8, 4)) in seen


class Counting(nn.Linear):
    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.calls = 0
        self.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.calls += 1


def test_hooks_that_are_methods_belong_to_the_copy(cut):
    model = mlp(Counting(4, 8))
    plan = half(model)
    small = cut(model, plan)
    before = model[0].calls
    small[0].calls = 0
    small(X)
    assert small[0].calls == 1
    assert model[0].calls == (1 if small is model else before)


def test_state_dict_hooks(cut):
    model, seen = mlp(), []
    model.register_state_dict_pre_hook(lambda m, p, k: seen.append("saving"))
    model.register_state_dict_post_hook(lambda m, d, p, meta: seen.append("saved"))
    model.register_load_state_dict_pre_hook(lambda m, *a: seen.append("loading"))
    model.register_load_state_dict_post_hook(lambda m, keys: seen.append("loaded"))
    small = cut(model, half(model))
    seen.clear()
    small.load_state_dict(small.state_dict())
    assert seen == ["saving", "saved", "loading", "loaded"]


# parametrizations


class Twice(nn.Module):
    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return 2 * w

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        return w / 2


def custom(layer: nn.Linear) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Twice())
    return layer


PARAMETRIZATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of inputs": functools.partial(parametrizations.weight_norm, dim=1),
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "custom": custom,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("where", [0, 2])
def test_parametrizations(name, where, cut):
    model = mlp().double().eval()
    model.insert(1, nn.Linear(8, 6).double())
    model[3] = nn.Linear(6, 2).double()
    PARAMETRIZATIONS[name](model[where + where // 2])
    x = X.double()
    model(x)
    keys, plan, modules = list(model.state_dict()), half(model, x), list(model.modules())
    masked = bough.mask(model, plan)
    small = cut(model, plan)
    assert list(small.state_dict()) == keys
    assert [type(m).__name__ for m in small.modules()] == [type(m).__name__ for m in modules]
    assert bough.verify(masked, small, plan, x).equal
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_masks_of_unstructured_pruning(cut):
    model = mlp().double()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[2], "weight", 0.5)
    x = X.double()
    plan = half(model, x)
    masked = bough.mask(model, plan)
    small = cut(model, plan)
    assert small[0].weight_mask.shape == small[0].weight_orig.shape == (4, 4)
    assert bough.verify(masked, small, plan, x).equal
    small(x).sum().backward()
    assert small[0].weight_orig.grad.shape == (4, 4)
    prune.remove(small[0], "weight")
    assert small[0].weight.shape == (4, 4)


# types, places, flags


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(4, 8), nn.Linear(8, 6).bfloat16(), nn.Linear(6, 2).half()
        self.register_buffer("gain", torch.ones(8, dtype=torch.float64))
        self.register_buffer("mask", torch.ones(8, dtype=torch.bool), persistent=False)
        self.register_buffer("order", torch.arange(6))
        self.phase = nn.Parameter(torch.ones(8, dtype=torch.complex64))
        self.nothing = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("none", None)
        self.register_parameter("no", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (self.up(x) * self.gain * self.mask * self.phase).real
        return self.down(self.mid(x.bfloat16()).half() + self.order * 0)


def looks(model: nn.Module) -> dict[str, tuple[object, ...]]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {n: (t.dtype, t.requires_grad, type(t), t.device) for n, t in tensors}


def test_dtypes_flags_and_buffers(cut):
    model = Mixed()
    model.up.bias.requires_grad_(False)
    plan = half(model)
    before, keys = looks(model), list(model.state_dict())
    small = cut(model, plan)
    assert looks(small) == before
    assert small.mask.shape == small.gain.shape == small.phase.shape == (4,)
    assert list(small.state_dict()) == keys
    assert small._non_persistent_buffers_set == {"mask"}
    assert small.none is None
    assert small.no is None
    small(X)


def test_modes(cut):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    plan = half(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    small = cut(model, plan)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(v, before[k]) or small is model for k, v in model.state_dict().items())


def test_meta_device(cut):
    with torch.device("meta"):
        model = mlp()
    small = cut(model, half(mlp()))
    assert {p.device.type for p in small.parameters()} == {"meta"}
    assert [tuple(p.shape) for p in small.parameters()] == [(4, 4), (4,), (2, 4), (2,)]
    model = copy.deepcopy(small)
    graph = bough.trace(model, X.to("meta"))
    scores = {g.name: torch.arange(g.size).float().numpy() for g in graph.groups}
    assert cut(model, bough.plan(graph, scores, keep=0.5))[0].out_features == 2


# ties


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.layer, self.down = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.same = self.layer
        self.other = nn.Linear(8, 8)
        self.other.weight = self.layer.weight
        self.listed = [self.layer, self.up.weight]
        self.register_buffer("scale", torch.ones(8))
        self.alias = self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.up(x)) * self.scale
        return self.down(F.relu(self.other(self.same(self.layer(x)) * self.alias)))


def test_ties_of_modules_parameters_buffers_and_what_lists_hold(cut):
    model = Tied()
    small = cut(model, half(model))
    assert small.same is small.layer is small.listed[0]
    assert small.other.weight is small.layer.weight
    assert small.other.bias is not small.layer.bias
    assert small.listed[1] is small.up.weight
    assert small.scale is small.alias
    assert small.scale.shape == (4,)
    small(X).sum().backward()


class SharedMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.a, self.b, self.down = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.double()
        self.b.weight = nn.Parameter(self.a.weight.data)
        self.up.register_buffer("ahead", self.a.weight.data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.b(F.relu(self.a(F.relu(self.up(x)))))))


def test_parameters_that_share_memory_go_on_sharing_it():
    model = SharedMemory()
    plan = half(model, X.double())
    small = bough.cut(model, plan)
    assert small.a.weight is not small.b.weight
    assert small.a.weight.data_ptr() == small.b.weight.data_ptr() == small.up.ahead.data_ptr()
    assert bough.verify(model, small, plan, X.double()).equal
    with torch.device("meta"):
        empty = SharedMemory()
    groups = [{(m.name, m.dim) for m in g.members} for g in bough.trace(empty, X.double().to("meta")).groups]
    assert any({("a.weight", 0), ("b.weight", 0)} <= group for group in groups)
    masked = bough.mask(model, plan)
    assert torch.equal(masked.a.weight, masked.up.ahead)
    assert bough.cut_(model, plan).a.weight.data_ptr() == model.b.weight.data_ptr() == model.up.ahead.data_ptr()
    assert torch.equal(model.b.weight, small.b.weight)


def test_a_plan_that_would_untie_memory_is_refused():
    model, other = SharedMemory(), SharedMemory()
    other.b.weight = nn.Parameter(other.b.weight.detach().clone())
    other.up.ahead = other.up.ahead.clone()
    plan = half(other, X.double())
    assert plan.kept["a.weight"] != plan.kept["b.weight"]
    for call in (bough.cut, bough.cut_, bough.mask):
        with pytest.raises(PlanError, match=r"a\.weight share their memory here"):
            call(model, plan)


# what modules and parameters carry


class Tagged(nn.Parameter):
    """A parameter of its own class, which is made in its own way and can be told from a plain one."""

    def __new__(cls, data: torch.Tensor, tag: str) -> "Tagged":
        self = super().__new__(cls, data)
        self.tag = tag
        return self


class Carrier(nn.Linear):
    __slots__ = ("slot",)

    def __init__(self) -> None:
        super().__init__(4, 8)
        self.weight = Tagged(self.weight.detach(), "mine")
        self.weight.notes = {"lr": 0.1, "of": self}
        self.slot, self.options, self.rate, self.text = "slot", {"a": [1, (2, 3)], 5: {7}}, 0.5, "relu"
        self.function, self.part, self.dtype, self.device = (
            F.relu,
            functools.partial(F.leaky_relu, negative_slope=0.1),
            torch.float32,
            X.device,
        )
        self.cached, self.history = None, []
        self.namespace = types.SimpleNamespace(size=8)

    @property
    def width(self) -> int:
        return self.out_features

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @in_features.setter
    def in_features(self, value: int) -> None:
        if "weight" in self._parameters:
            raise AttributeError("computed")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.cached is None or self.cached.shape[-1] != self.width:
            self.cached = torch.ones(self.width)
        return self.function(super().forward(x)) * self.cached

    def get_extra_state(self) -> dict[str, int]:
        return {"width": self.width}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state["width"] == self.width


def test_what_modules_and_parameters_carry(cut):
    model = mlp(Carrier())
    model(X)
    plan = half(model)
    before = {k: getattr(model[0], k) for k in ("slot", "options", "rate", "text", "function", "dtype", "device", "history")}
    small = cut(model, plan)
    layer = small[0]
    assert {k: getattr(layer, k) for k in before} == before
    assert (layer.options is before["options"]) == (small is model)
    assert type(layer.weight) is Tagged
    assert layer.weight.tag == "mine"
    assert layer.weight.notes == {"lr": 0.1, "of": layer}
    assert layer.part.func is F.leaky_relu
    assert layer.width == layer.out_features == layer.in_features == 4
    small.load_state_dict(small.state_dict())
    small(X).sum().backward()
    assert layer.cached.shape == (4,)
    assert small is model or model[0].cached.shape == (8,)


def test_a_cut_model_can_be_copied_and_pickled(cut):
    model = mlp(Carrier())
    small = cut(model, half(model))
    assert torch.equal(copy.deepcopy(small)(X), small(X))
    plain = cut(mlp(), half(mlp()))
    assert torch.equal(pickle.loads(pickle.dumps(plain))(X), plain(X))


def test_containers_of_parameters(cut):
    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(8, 4), torch.randn(2, 8)])
            self.more = nn.ParameterDict({"bias": torch.randn(8)})
            self.gain = nn.Buffer(torch.ones(8), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(F.relu(F.linear(x, self.weights[0], self.more["bias"]) * self.gain), self.weights[1])

    model = Lists()
    small = cut(model, half(model))
    assert (small.weights[0].shape, small.weights[1].shape, small.more["bias"].shape, small.gain.shape) == (
        (4, 4),
        (2, 4),
        (4,),
        (4,),
    )
    small(X)


# wrappers


@pytest.fixture
def gloo(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_wrappers_stay_around_the_cut_module(wrap, cut):
    model = mlp()
    wrapped, plan = wrap(model), half(model)
    expected, keys = bough.cut(model, plan)(X), list(wrapped.state_dict())
    small = cut(wrapped, half(wrapped))
    assert type(small) is type(wrapped)
    inner = getattr(small, "module", getattr(small, "_orig_mod", None))
    assert torch.equal(inner(X), expected)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(small(X), inner(X))
    assert list(small.state_dict()) == keys


def test_distributed_data_parallel(gloo):
    model = mlp()
    wrapped, plan = nn.parallel.DistributedDataParallel(model), half(model)
    with pytest.raises(PlanError, match=r"cut_\(model.module, plan\)"):
        bough.cut_(wrapped, plan)
    small = bough.cut(wrapped, plan)
    assert type(small) is nn.parallel.DistributedDataParallel
    small(X).sum().backward()
    assert small.module[0].weight.grad.shape == (4, 4)
    assert wrapped.module[0].weight.grad is None


def test_what_is_compiled_is_compiled_anew(cut):
    model = torch.compile(mlp(), backend="eager")
    plan = half(model)
    model(X)
    expected = bough.cut(model._orig_mod, plan)(X)
    assert torch.allclose(cut(model, plan)(X), expected)


# what is refused


def scripted() -> nn.Module:
    return torch.jit.script(mlp())


def exported() -> object:
    return torch.export.export(mlp(), (X,))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))


def observed() -> nn.Module:
    from torch.ao.quantization import get_default_qconfig, prepare

    model = mlp().eval()
    model.qconfig = get_default_qconfig("x86")
    return prepare(model)


def quantized() -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(mlp())


def flat() -> nn.Module:
    return torch.distributed.fsdp.FullyShardedDataParallel(mlp(), device_id=torch.device("cpu"))


def sharded() -> nn.Module:
    return torch.distributed.fsdp.fully_shard(mlp(), mesh=torch.distributed.init_device_mesh("cpu", (1,)))


def packed() -> nn.Module:
    class GGUFParameter(nn.Parameter):
        """As diffusers has it: bytes of blocks, whose shape is not that of the values."""

    model = mlp()
    model[0].weight = GGUFParameter(torch.zeros(8, 5, dtype=torch.uint8), requires_grad=False)
    return model


REFUSED = {
    scripted: "compiled by torch.jit.*cut the model first",
    exported: r"model=<ExportedProgram>.*module\(\)",
    lazy: "has no shape yet.*run the model once",
    observed: "observes values for quantization.*cut the model first",
    quantized: "part of a quantized model.*cut the model first",
    flat: "is sharded.*cut the model first",
    sharded: "is sharded.*cut the model first",
    packed: r"0\.weight is a GGUFParameter.*packed values.*cut it, then quantize",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # much of this is deprecated
@pytest.mark.parametrize("make", REFUSED, ids=lambda f: f.__name__)
def test_what_can_not_be_cut_is_refused_with_what_to_do(make, gloo):
    model, plan = make(), half(mlp())
    for call in (
        lambda: bough.trace(model, X),
        lambda: bough.cut(model, plan),
        lambda: bough.cut_(model, plan),
        lambda: bough.mask(model, plan),
    ):
        with pytest.raises((TraceError, ArgumentError), match=REFUSED[make]):
            call()


def test_what_can_not_be_copied_is_told_and_can_be_cut_in_place():
    model = mlp()
    model.lock = threading.Lock()
    plan = half(model)
    with pytest.raises(PlanError, match=r"can not be copied: TypeError: .*lock.*bough.cut_"):
        bough.cut(model, plan)
    assert model[0].out_features == 8
    assert bough.cut_(model, plan)[0].out_features == 4
    assert model.lock


def test_tensors_that_the_model_hides_freeze_what_they_meet():
    hidden = {}

    class Hiding(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden.setdefault("gain", torch.ones(self.out_features))
            return super().forward(x) * hidden["gain"]

    model = mlp(Hiding(4, 8))
    model(X)
    graph = bough.trace(model, X)
    assert not graph.groups
    assert any("a tensor that the model does not hold" in f.reason for f in graph.frozen)


def test_a_copy_that_fails_midway_leaves_the_model_as_it_was():
    class Strict(nn.Linear):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "in_features" and name in self.__dict__:
                raise AttributeError("constant")
            super().__setattr__(name, value)

    model = mlp()
    model[2] = Strict(8, 2)
    plan, before, text = half(model), copy.deepcopy(model.state_dict()), str(model)
    with pytest.raises(AttributeError, match="constant"):
        bough.cut(model, plan)
    assert str(model) == text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["mlp", "residual", "gated_attention"])
def test_no_tensor_waits_for_a_collection_of_cycles(name):
    """What a verb is done with is freed at once: of a large model a cycle would hold gigabytes, for who knows how long."""
    model, inputs = ZOO[name]()
    bough.prune(model.eval(), inputs, bough.Budget(params="60%"))  # what torch itself builds once
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        bough.prune(model, inputs, bough.Budget(params="60%"))
        gc.collect()
        assert not [x for x in gc.garbage if isinstance(x, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
