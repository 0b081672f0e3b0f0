"""`verify` says equal where the cut model is the masked original, and only there."""

import copy
import gc
import math
import random
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import bough
from bough.cli.commands import app
from bough.cutting.verification import relative_tolerance
from bough.cutting.verify import missing_precision
from bough.errors import BoughError, PlanError, TraceError, VerificationError
from bough.recovery import iterate
from bough.tracing.capture.tree import tensors_within
from tests.zoo import randomize
from tests.zoo.small import ZOO

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))


def planned(model, inputs, keep=0.5, **options):
    graph = bough.trace(model, inputs)
    return bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=keep, **options)


def checked(model, inputs, keep=0.5, **options):
    plan = planned(model, inputs, keep)
    return bough.verify(model, bough.cut(model, plan), plan, inputs, **options)


class Net(nn.Module):
    """Two hidden layers with a normalization between them, and a head; its output is multiplied by `scale`."""

    def __init__(self, norm=nn.Identity, scale=1.0):
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(5, 16), norm(16), nn.Linear(16, 12), nn.Linear(12, 4)
        self.scale = scale

    def forward(self, x):
        return self.c(F.gelu(self.b(F.gelu(self.norm(self.a(x)))))) * self.scale


def built(norm=nn.Identity, scale=1.0):
    return randomize(Net(norm, scale).eval()).float()


# Mutations that must be caught


def wrong_index(small):
    """One unit of the first layer is another one than the plan says."""
    small.a.weight[3] = small.a.weight[0] + 0.01


def wrong_column(small):
    small.b.weight[:, 2] = small.b.weight[:, 1]


def wrong_scale(small):
    small.c.weight *= 1.0001


def lost_bias(small):
    small.b.bias.zero_()


def swapped_units(small):
    small.b.weight[[0, 1]] = small.b.weight[[1, 0]]
    small.b.bias[[0, 1]] = small.b.bias[[1, 0]]


MUTATIONS = (wrong_index, wrong_column, wrong_scale, lost_bias, swapped_units)
NORMS = {"exact": nn.Identity, "layer norm": nn.LayerNorm, "rms norm": nn.RMSNorm, "group norm": lambda n: nn.GroupNorm(4, n)}


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
@pytest.mark.parametrize("norm", NORMS)
def test_mutations_are_caught_at_every_scale(norm, scale):
    model = built(NORMS[norm], scale)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    if norm == "group norm":
        x = x[:, :, None].expand(6, 5, 3)
        model.a, model.b, model.c = (pointwise(layer) for layer in (model.a, model.b, model.c))
    plan = planned(model, x)
    assert bool(plan.renormalizing) == (norm != "exact")
    assert bough.verify(model, bough.cut(model, plan), plan, x).equal
    for mutate in MUTATIONS:
        small = bough.cut(model, plan)
        with torch.no_grad():
            mutate(small)
        report = bough.verify(model, small, plan, x)
        assert not report.equal, f"{mutate.__name__} is not seen: {report}"
        assert "NOT equal" in str(report)


def test_other_weights_are_named_as_the_cause():
    model, x = built(nn.Identity, 1.0), torch.randn(6, 5)
    plan = planned(model, x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.a.weight += 0.1
    assert "has other weights than the model that was pruned" in bough.verify(other, bough.cut(model, plan), plan, x).cause
    assert bough.verify(other, bough.cut(other, plan), plan, x).equal


def pointwise(linear):
    conv = nn.Conv1d(linear.in_features, linear.out_features, 1)
    conv.weight.data, conv.bias.data = linear.weight.data[..., None].clone(), linear.bias.data.clone()
    return conv


def test_each_output_is_judged_by_its_own_scale():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = built()

        def forward(self, x):
            y = self.net(x)
            return {"large": y[:, :2] * 1e9, "small": y[:, 2:]}

    model = Two().eval()
    plan = planned(model, X)
    small = bough.cut(model, plan)
    with torch.no_grad():
        small.net.c.bias[2] += 1e-4  # nothing beside the large output
    report = bough.verify(model, small, plan, X)
    assert [(o.path, o.equal) for o in report.outputs] == [("['large']", True), ("['small']", False)]
    assert "at output['small']" in str(report)


def test_integers_are_compared_exactly():
    class Counts(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.net, self.by = built(), by

        def forward(self, x):
            y = self.net(x)
            return y, (y * 100).round().long() + self.by

    model, other = Counts(0), Counts(1)
    plan = planned(model, X)
    assert bough.verify(model, bough.cut(model, plan), plan, X).equal
    other.load_state_dict(model.state_dict())
    report = bough.verify(model, bough.cut(other, plan), plan, X)
    assert [(o.error, o.tolerance) for o in report.outputs][1] == (1.0, 0.0)
    assert not report.equal


def test_outputs_that_are_rounding_alone_are_equal():
    """The mean of what has no mean: 1e-17 in place of zero, and another 1e-17 once units are gone."""

    class Centered(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = built()

        def forward(self, x):
            y = self.net(x)
            return y, (y - y.mean(0)).mean(0)

    report = checked(Centered().eval(), X)
    assert report.equal
    assert report.outputs[1].scale < 1e-14


# Factors that are folded into weights


class Attention(nn.Module):
    """Scores divided by the square root of an attribute, which the cut changes."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = (q @ k.transpose(-2, -1) / math.sqrt(self.size)).softmax(-1)
        return x + self.o((a @ v).transpose(1, 2).reshape(b, n, self.heads * self.size))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks, self.head = nn.Linear(6, 32), nn.Sequential(Attention(), Attention()), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)).mean(1))


def tokens(dtype):
    torch.manual_seed(0)
    model, x = Tokens().eval(), torch.randn(2, 7, 6)
    nn.init.normal_(model.embed.weight, std=5.0)
    return model.to(dtype), x.to(dtype)


@pytest.mark.parametrize(
    ("dtype", "least"),
    [(torch.float32, 1e-9), (torch.float16, 1e-6), (torch.bfloat16, 1e-5)],
    ids=["float32", "float16", "bfloat16"],
)
def test_rounding_of_folded_factors_is_told_apart(dtype, least):
    model, x = tokens(dtype)
    plan = planned(model, x, keep=0.6)
    assert plan.scales
    small = bough.cut(model, plan)
    report = bough.verify(model, small, plan, x)
    assert report.equal
    assert report.max_error < 1e-13 * report.scale  # the cut itself is exact
    assert report.rounding > least
    assert f"{report.rounding:.2e}" in str(report)
    with torch.no_grad():
        small.blocks[0].q.weight *= 1.01
    assert not bough.verify(model, small, plan, x).equal


def test_a_factor_that_is_a_power_of_two_is_folded_without_rounding():
    model, x = tokens(torch.bfloat16)
    plan = planned(model, x, keep={"blocks.0.q/head_dim": 2, "blocks.1.q/head_dim": 2})
    assert {s.factor for s in plan.scales} == {0.5}
    report = bough.verify(model, bough.cut(model, plan), plan, x)
    assert report.equal
    assert report.rounding == 0.0


class Normed(nn.Module):
    """Queries or keys are normalized with a gain in float32, as models in half precision keep their norms."""

    def __init__(self, first, second):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, dtype=torch.bfloat16) for _ in range(4))
        self.first, self.second = first, second

    def forward(self, x):
        q, k = self.first(self.q(x).float()), self.second(self.k(x).float())
        a = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.o(a.bfloat16() @ self.v(x))


@pytest.mark.parametrize("gained", [0, 1])
def test_factors_go_where_least_is_lost(gained):
    norms = [nn.Identity(), nn.Identity()]
    norms[gained] = nn.LayerNorm(16)
    torch.manual_seed(0)
    model, x = Normed(*norms).eval(), torch.randn(2, 5, 16).bfloat16()
    plan = planned(model, x, keep={"q/head_dim": 7})
    assert {s.name for s in plan.scales} == {f"{('first', 'second')[gained]}.{n}" for n in ("weight", "bias")}


# Outputs that do not show what was cut


def without_a_branch(model):
    """The second hidden layer's output is multiplied by zero."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.gate, self.out = model, nn.Parameter(torch.zeros(4)), nn.Linear(5, 4)

        def forward(self, x):
            return self.out(x) + self.gate * self.net(x)

    return Gated().eval()


def head_of_zeros():
    model = built()
    nn.init.zeros_(model.c.weight)
    return model


def times_zero():
    return built(scale=0.0)


CONSTANT = {"head of zeros": head_of_zeros, "gate of zeros": lambda: without_a_branch(built()), "dead units": None}


def dead():
    """The last hidden layer is so negative that nothing passes its activation."""
    model = built()
    nn.init.constant_(model.b.bias, -1e3)
    return model


CONSTANT["dead units"] = dead


@pytest.mark.parametrize("name", CONSTANT)
def test_an_output_that_does_not_depend_on_the_cut_is_checked_with_drawn_weights(name):
    model = CONSTANT[name]()
    plan = planned(model, X)
    small = bough.cut(model, plan)
    state = torch.get_rng_state()
    report = bough.verify(model, small, plan, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert report.equal
    assert report.drawn is not None
    assert report.drawn.depends
    assert report.drawn.outputs[0].scale > 1e-3
    assert "the output does not depend on what was cut" in str(report)
    net = getattr(small, "net", small)
    with torch.no_grad():
        net.b.weight[0] += 0.1  # no output shows it
    report = bough.verify(model, small, plan, X)
    assert not report.equal
    assert "b.weight of the cut model is not the plan's slice" in str(report)


def test_wrong_python_is_seen_behind_a_head_of_zeros():
    """The weights are right, and what the cut model computes with them is not."""
    model = head_of_zeros()
    plan = planned(model, X)
    small = bough.cut(model, plan)
    small.norm = nn.Tanh()
    report = bough.verify(model, small, plan, X)
    assert not report.equal
    assert report.outputs[0].equal
    assert report.drawn.outputs[0].error > 1e-3


def test_where_nothing_helps_only_the_weights_are_compared():
    model = times_zero()
    plan = planned(model, X)
    small = bough.cut(model, plan)
    report = bough.verify(model, small, plan, X)
    assert report.equal
    assert not report.drawn.depends
    assert "only the weights could be compared" in str(report)
    with torch.no_grad():
        wrong_column(small)
    assert not bough.verify(model, small, plan, X).equal


def test_classes_alone_are_not_taken_for_a_proof():
    class Classes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = built()

        def forward(self, x):
            return self.net(x).argmax(-1)

    model = Classes().eval()
    plan = planned(model, X)
    small = bough.cut(model, plan)
    report = bough.verify(model, small, plan, X)
    assert report.equal
    assert "the output holds integers alone" in str(report)
    with torch.no_grad():
        small.net.b.weight[0, 0] += 1e-3  # no class changes
    report = bough.verify(model, small, plan, X)
    assert report.outputs[0].equal
    assert not report.equal


def test_a_hidden_branch_is_checked_though_the_output_depends_on_the_cut():
    class Blocks(nn.Module):
        """Two residual blocks, the second with a gain of zero, as at the start of training."""

        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two, self.head = nn.Linear(5, 8), built(), built(), nn.Linear(8, 3)
            self.up = nn.ModuleList([nn.Linear(4, 8), nn.Linear(4, 8)])
            self.down = nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 5)])
            self.gain = nn.Parameter(torch.zeros(8))

        def forward(self, x):
            x = self.stem(x)
            x = x + self.up[0](self.one(self.down[0](x)))
            return self.head(x + self.gain * self.up[1](self.two(self.down[1](x))))

    torch.manual_seed(0)
    model = Blocks().eval()
    plan = planned(model, X)
    small = bough.cut(model, plan)
    report = bough.verify(model, small, plan, X)
    assert report.equal
    assert "gain is zero, which may hide a branch" in str(report)
    with torch.no_grad():
        small.two.b.weight[0] += 0.1
    assert not bough.verify(model, small, plan, X).equal


def test_drawn_weights_fit_a_model_without_some_layers():
    """Layers are renumbered once one is left out."""

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 4)
            self.blocks = nn.ModuleList(Residual(8) for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    torch.manual_seed(0)
    model = Stack().eval()
    nn.init.zeros_(model.head.weight)
    graph = bough.trace(model, X)
    plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5, drop=["blocks.0"])
    report = bough.verify(model, bough.cut(model, plan), plan, X)
    assert report.equal
    assert report.drawn.depends


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x):
        return x + self.b(F.relu(self.a(x)))


# Precisions


def test_a_precision_that_an_op_lacks_is_said_in_the_result():
    class InFloat(nn.Module):
        """A layer is given numbers that are made in float32: its weights in float64 do not fit."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.constant = nn.Linear(5, 16), nn.Linear(16, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(F.relu(self.a(x))) + self.constant(torch.from_numpy(np.ones((len(x), 4), dtype=np.float32)))

    torch.manual_seed(0)
    model = InFloat().eval()
    report = checked(model, X)
    assert report.equal
    assert report.dtype == "float32"
    assert re.search("float32, as it does not run in float64 .*same dtype", str(report))
    assert all(o.tolerance <= 100 * relative_tolerance(torch.float32) * o.scale for o in report.outputs)
    plan = planned(model, X)
    small = bough.cut(model, plan)
    with torch.no_grad():
        small.b.bias += 0.01 * report.scale
    assert not bough.verify(model, small, plan, X).equal


WIDE, NARROW = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2)


@pytest.mark.parametrize("call", [
    lambda: WIDE @ NARROW,
    lambda: F.linear(WIDE, NARROW),
    lambda: F.conv1d(WIDE[None], NARROW[None]),
    lambda: F.conv1d(WIDE[None], WIDE[None], NARROW[0]),
    lambda: F.scaled_dot_product_attention(WIDE[None], NARROW[None], WIDE[None]),
    lambda: torch.addmm(WIDE, NARROW, NARROW),
    lambda: torch.zeros(2, 2).index_put_((torch.tensor(0),), WIDE[0]),
    lambda: torch.linalg.inv(WIDE.half()),
])  # fmt: skip
def test_errors_of_torch_that_say_that_a_precision_is_missing(call):
    with pytest.raises((RuntimeError, TypeError)) as caught:
        call()
    assert missing_precision(caught.value)
    wrapped = TraceError("can not be run")
    wrapped.__cause__ = caught.value
    assert missing_precision(wrapped) == missing_precision(caught.value)


@pytest.mark.parametrize("call", [
    lambda: NARROW @ torch.zeros(3, 3),
    lambda: NARROW.view(3, 3),
    lambda: NARROW[5],
    lambda: int("double"),
    lambda: torch.zeros(2).to("cuda:77"),
])  # fmt: skip
def test_errors_that_say_something_else(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    assert not missing_precision(caught.value)


def test_other_errors_are_raised_as_they_are():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("the sensor is not connected")

    model = built()
    plan = planned(model, X)
    small = bough.cut(model, plan)
    small.norm = Fails()
    with pytest.raises(RuntimeError, match="the sensor is not connected"):
        bough.verify(model, small, plan, X)


@pytest.mark.parametrize("dtype", ["float64", torch.int64, float, 64])
def test_what_is_no_floating_dtype_is_refused(dtype):
    model = built()
    plan = planned(model, X)
    with pytest.raises((BoughError, TypeError), match=r"dtype=torch\.float64"):
        bough.verify(model, bough.cut(model, plan), plan, X, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
def test_coarser_precisions_have_coarser_tolerances(dtype):
    model = built()
    report = checked(model, X, dtype=dtype)
    assert report.equal
    assert report.dtype == str(dtype or torch.float32).removeprefix("torch.")
    plan = planned(model, X)
    small = bough.cut(model, plan)
    with torch.no_grad():
        wrong_column(small)
    assert not bough.verify(model, small, plan, X, dtype=dtype).equal


# Randomness


class Noisy(nn.Module):
    """Drops units by a function that does not know of eval mode."""

    def __init__(self, drop):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(5, 32), nn.Linear(32, 4), drop

    def forward(self, x):
        return self.b(self.drop(F.relu(self.a(x))))


RANDOM = {
    "dropout": (lambda x: F.dropout(x, 0.5, training=True), "draws random numbers .*(native_dropout|bernoulli)"),
    "noise": (lambda x: x * torch.rand_like(x), "draws random numbers .*rand"),
    "numpy": (lambda x: x * float(np.random.default_rng().random()), "random numbers.*mul"),
    "python": (lambda x: x * random.SystemRandom().random(), "random numbers.*mul"),
}


@pytest.mark.parametrize("name", RANDOM)
def test_randomness_is_an_error_that_names_its_place(name):
    drop, message = RANDOM[name]
    model = Noisy(drop).eval()
    state = torch.get_rng_state()
    with pytest.raises(VerificationError, match=message) as caught:
        bough.prune(model, X, bough.Budget(params="50%"))
    assert torch.equal(torch.get_rng_state(), state)
    assert "test_verify.py:" in str(caught.value)
    assert "\n" not in str(caught.value)
    result = caught.value.result
    assert not result.report.equal
    assert result.model.a.out_features < 32
    assert not bough.prune(model, X, bough.Budget(params="50%"), on_mismatch="return").report.equal
    with pytest.raises(VerificationError, match="random numbers") as caught:
        iterate(model, X, bough.Budget(params="50%"), lambda small, step: pytest.fail("trained"), steps=2)
    assert len(caught.value.result.steps) == 1
    done = iterate(model, X, bough.Budget(params="50%"), lambda small, step: None, steps=2, on_mismatch="return")
    assert not done.report.equal
    with pytest.raises(PlanError, match="'raise' or 'return'"):
        bough.prune(model, X, bough.Budget(params="50%"), on_mismatch="ignore")


def test_random_numbers_of_the_same_shape_are_the_same_in_both_models():
    class Sampled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = built()

        def forward(self, x):
            y = self.net(x)
            return y + torch.randn_like(y)

    assert checked(Sampled().eval(), X).equal


def noisy():
    torch.manual_seed(0)
    return Noisy(RANDOM["dropout"][0]).eval(), X


@pytest.mark.parametrize("steps", [[], ["--task", "tests.test_verify:task"]])
def test_the_command_line_saves_nothing_that_does_not_verify(tmp_path, steps):
    words = ["prune", "tests.test_verify:noisy", "--budget", "params=50%", *steps]
    with pytest.raises(VerificationError, match=r"random numbers.*nothing was saved; with --on-mismatch return"):
        CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a")], catch_exceptions=False)
    assert not list((tmp_path / "a").glob("**/plan.json"))
    found = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "b"), "--on-mismatch", "return"], catch_exceptions=False)
    assert found.exit_code == 0
    assert "NOT equal" in found.output
    assert (tmp_path / "b" / "plan.json").exists()


def task():
    return torch.utils.data.TensorDataset(torch.randn(8, 5), torch.randint(0, 4, (8,))), None


# What is compared


def test_a_comparison_of_nothing_is_not_equal():
    assert not bough.Verification(0.0, 0.0, "float64", ("a",), ()).equal


def test_outputs_of_nothing_but_nan_are_not_equal():
    class Undefined(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = built()

        def forward(self, x):
            return self.net(x) * float("nan")

    assert not checked(Undefined().eval(), X).equal


def test_verification_is_plain_data():
    report = checked(head_of_zeros(), X)
    data = report.to_dict()
    assert data["equal"] is True
    assert data["outputs"][0].keys() == {"path", "error", "scale", "tolerance"}
    assert data["drawn"]["depends"] is True


def test_nothing_changes():
    model, x = ZOO["group_norm"]()
    model = randomize(model.train()).float()
    x = x.float()
    plan = planned(model, x)
    small = bough.cut(model, plan)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (model, small)]
    state = torch.get_rng_state()
    bough.verify(model, small, plan, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for net in (model, small) for m in net.modules())
    for net, old in zip((model, small), before, strict=True):
        for key, value in net.state_dict().items():
            assert torch.equal(value, old[key])
            assert value.dtype == old[key].dtype


# Memory


class Allocated(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and alive, and notes the most there were."""

    def __init__(self, *models):
        super().__init__()
        self.now = self.most = 0
        self.known = {p.untyped_storage()._cdata for m in models for p in m.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_within(result):
            storage = tensor.untyped_storage()
            if tensor.device.type != "meta" and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def free(self, key, size):
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize("head", ["as it is", "zeros"])
@pytest.mark.parametrize("keep", [0.25, 0.9])
def test_memory_is_twice_the_models_at_most(head, keep):
    """In float64: one copy of the float32 model at a time, whatever is compared."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(128, 128), nn.ReLU()) for _ in range(40)]
    model, x = nn.Sequential(nn.Linear(5, 128), *layers, nn.Linear(128, 4)).eval(), X[:2]
    if head == "zeros":
        nn.init.zeros_(model[-1].weight)
    plan = planned(model, x, keep)
    small = bough.cut(model, plan)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    gc.collect()
    with Allocated(model, small) as allocated:
        report = bough.verify(model, small, plan, x)
    assert report.equal
    assert (report.drawn is not None) == (head == "zeros")
    assert allocated.most < 2.25 * size  # and some tensors on the way
    assert allocated.most > 1.9 * size


def test_the_first_verification_of_a_process_keeps_no_copy():
    """What torch imports at first use keeps the frames that it is imported from."""
    code = """
import gc, weakref, torch, bough
from bough.cutting import reference
gc.disable()
copies, init = [], reference.Reference.__init__
def noted(self, masked, *args):
    copies.append(weakref.ref(masked))
    init(self, masked, *args)
reference.Reference.__init__ = noted
net, x = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval(), torch.randn(3, 5)
graph = bough.trace(net, x)
plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
bough.verify(net, bough.cut(net, plan), plan, x)
print([copy() is None for copy in copies])
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[True]"
