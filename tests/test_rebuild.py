"""Models whose own Python contradicts a cut, rebuilt: each equals its masked original, and is cut where `cut` could not."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bough
from bough.cutting import rebuild
from bough.errors import CheckpointError, ConflictError, ExportError, PlanError
from bough.planning.budget import LeastOfTied
from tests.zoo import randomize, timm_models, to_double
from tests.zoo.shim import declare_torchvision_ops
from tests.zoo.small_sequence import ZOO as ROUTED


class LiteralView(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)).view(-1, 8))))


class Attention(nn.Module):
    """Heads and widths as class constants and as `C // num_heads`; attention's default scale."""

    HEADS = 4

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.project, self.head = nn.Linear(5, 24), nn.Linear(24, 72), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x):
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.HEADS, c // self.HEADS).permute(2, 0, 3, 1, 4)
        x = x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return self.head(x)


class RepeatedKeys(nn.Module):
    """Grouped queries, with literals everywhere and a scale derived from a width."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(5, 32), nn.Linear(5, 16), nn.Linear(5, 16), nn.Linear(32, 3)

    def forward(self, x):
        q = self.q(x).view(2, -1, 4, 8).transpose(1, 2)
        k, v = (f(x).unflatten(-1, (2, 8)).transpose(1, 2).repeat_interleave(2, dim=1) for f in (self.k, self.v))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).reshape(2, -1, 32))


class Parts(nn.Module):
    """Splits, slices and picks at literal places."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(5, 12) for _ in range(5))
        self.out = nn.ModuleList(nn.Linear(n, 3) for n in (4, 4, 4, 5, 7, 9, 3, 6, 11))

    def forward(self, x):
        f = [F.relu(m(x)) for m in (self.a, self.b, self.c, self.d, self.e)]
        parts = [*f[0].split(4, 1), *f[1].split([5, 7], 1), f[2][:, :9], f[2][:, -3:], f[3].narrow(1, 2, 6), f[4][:, 1:]]
        return sum(m(p) for m, p in zip(self.out, parts, strict=True)) + f[4].select(1, 0)[:, None]


class Groups(nn.Module):
    """Functions that are told a number of groups or a width, and channels shuffled by hand."""

    def __init__(self):
        super().__init__()
        self.a, self.weight = nn.Conv2d(3, 12, 3, padding=1), nn.Parameter(torch.randn(24, 4, 3, 3))
        self.b, self.head = nn.ConvTranspose2d(24, 12, 2, groups=3), nn.Linear(12, 3)

    def forward(self, x):
        x = F.group_norm(F.relu(self.a(x)), 3)
        x = F.relu(F.conv2d(x, self.weight, padding=1, groups=3))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, 24, h, w)
        x = F.relu(self.b(x)).mean((2, 3))
        return self.head(F.layer_norm(x, [12]))


class Flattened(nn.Module):
    """A small convolutional net as tutorials write it."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)
        self.drop, self.c, self.d = nn.Dropout(0.2), nn.Linear(8 * 4 * 4, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.b(F.relu(self.norm(self.a(x))))), 2)
        return self.d(F.relu(self.c(self.drop(x.view(-1, 8 * 4 * 4)))))


class Made(nn.Module):
    """Tensors made at literal sizes, held outside of the state dict, or computed without gradients."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(16, 8), nn.Linear(8, 3)
        self.table = torch.rand(8, dtype=torch.float64)
        self.register_buffer("shift", torch.rand(1, 8), persistent=False)

    def forward(self, x):
        x = F.relu(self.a(x)) * self.table + self.shift.expand(x.shape[0], 8)
        x = F.relu(self.b(x.repeat(1, 2))) + x.new_zeros(8)
        with torch.no_grad():
            y = torch.cat([x, torch.ones(x.shape[0], 8, dtype=x.dtype)], 1).reshape(-1, 2, 8).sum(1)
        return self.c(torch.where(x > 0, x, y.view(-1, 8)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(F.relu(self.up(x))).reshape(-1, 8)


def swin():
    declare_torchvision_ops()
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 8, [1, 2], [2, 4], [4, 4], num_classes=3), torch.randn(2, 3, 32, 32)


def vit():
    declare_torchvision_ops()
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 8, 1, 4, 16, 24, num_classes=3), torch.randn(2, 3, 16, 16)


NETS = {
    "literal_view": lambda: (LiteralView(), torch.randn(2, 5)),
    "attention": lambda: (Attention(), torch.randn(2, 6, 5)),
    "repeated_keys": lambda: (RepeatedKeys(), torch.randn(2, 6, 5)),
    "parts": lambda: (Parts(), torch.randn(2, 5)),
    "groups": lambda: (Groups(), torch.randn(2, 3, 6, 6)),
    "flattened": lambda: (Flattened(), torch.randn(2, 3, 12, 12)),
    "made": lambda: (Made(), torch.randn(2, 5)),
    "torchvision_swin": swin,
}
AGREEING = {"timm_vit": timm_models.ZOO["vision_transformer"], "torchvision_vit": vit}  # their Python follows a cut


def built(name):
    torch.manual_seed(0)
    model, inputs = {**NETS, **AGREEING}[name]()
    return randomize(model.eval()), to_double(inputs)


def planned(model, inputs, keep=0.5, on_conflict="rebuild", **options):
    graph = bough.trace(model, inputs)
    return bough.plan(graph, bough.score(graph, bough.importance.Random(1)), keep=keep, on_conflict=on_conflict, **options)


def uneven(model, inputs):
    """Every group to a count of its own, whatever the model's Python says of the others."""
    graph = bough.trace(model, inputs)
    return LeastOfTied({g.name: max(1, g.size * (2 + i % 3) // 5) for i, g in enumerate(graph.groups)})


@pytest.mark.parametrize("name", NETS)
def test_rebuilt_equals_masked_where_cut_could_not(name):
    model, inputs = built(name)
    keep = uneven(model, inputs)
    plan = planned(model, inputs, keep)
    assert plan.rebuild
    assert {n: k for n, (k, _) in plan.groups.items()} == keep
    assert {n: k for n, (k, _) in planned(model, inputs, keep, on_conflict="freeze").groups.items()} != keep
    before = copy.deepcopy(model.state_dict())
    small = rebuild(model, plan, inputs)
    report = bough.verify(model, small, plan, inputs)
    assert report.max_error < 1e-9
    assert report.scale > 1e-3
    assert torch.equal(copy.deepcopy(small)(inputs), small(inputs))
    again = bough.trace(small, inputs).cost()
    assert (again.params, again.macs) == (plan.cost.params, plan.cost.macs)
    assert set(small.state_dict()) == set(before)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("name", AGREEING)
def test_programs_of_models_whose_python_would_follow(name):
    model, inputs = built(name)
    plan = planned(model, inputs, uneven(model, inputs))
    assert not plan.rebuild
    plan = replace(plan, rebuild=True, attributes={}, scales=())
    small = rebuild(model, plan, inputs)
    assert sum(p.numel() for p in small.parameters()) == plan.cost.params
    assert bough.verify(model, small, plan, inputs).max_error < 1e-9


@pytest.mark.parametrize("name", ["literal_view", "flattened", "repeated_keys"])
def test_exact_groups_equal_plain_zeros(name):
    """The masking is written out here, from nothing but plan.kept."""
    model, inputs = built(name)
    plan = planned(model, inputs, exact_only=True)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for tensor, parameter in masked.named_parameters():
            for dim, kept in plan.kept.get(tensor, {}).items():
                gone = [i for i in range(parameter.shape[dim]) if i not in kept]
                parameter.index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
        torch.testing.assert_close(rebuild(model, plan, inputs)(inputs), masked(inputs), rtol=0, atol=1e-9)


@settings(max_examples=6)
@given(st.sampled_from(["literal_view", "repeated_keys", "parts", "groups", "flattened", "made"]), st.data())
def test_any_counts(name, data):
    model, inputs = built(name)
    graph = bough.trace(model, inputs)
    keep = {g.name: data.draw(st.integers(1, g.size), label=g.name) for g in graph.groups}
    plan = planned(model, inputs, keep)
    small = rebuild(model, plan, inputs)
    assert sum(p.numel() for p in small.parameters()) == plan.cost.params
    assert bough.verify(model, small, plan, inputs).max_error < 1e-9


@settings(max_examples=4)
@given(st.integers(1, 24), st.integers(1, 4), st.integers(1, 6))
def test_heads_head_dims_and_hidden_are_free(hidden, heads, each):
    model, inputs = built("attention")
    names = {g.kind: g.name for g in bough.trace(model, inputs).groups}
    plan = planned(model, inputs, {names["hidden"]: hidden, names["head"]: heads, names["head_dim"]: each})
    small = rebuild(model, plan, inputs)
    assert small.qkv.weight.shape == (3 * heads * each, hidden)
    assert bough.verify(model, small, plan, inputs).max_error < 1e-9


def test_attention_keeps_its_scale_where_masked_units_are_not_zero():
    """Queries and keys are shifted, so head dims renormalize: the formula over kept ones, by the width of the original."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.out = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 3)

        def forward(self, x):
            return self.out(F.scaled_dot_product_attention(self.q(x) + 1, self.k(x) + 1, x))

    model, inputs = randomize(Shifted().eval()), torch.randn(2, 6, 5).double()
    plan = planned(model, inputs)
    assert plan.rebuild
    assert plan.renormalizing == ("q/head_dim",)
    kept = plan.kept["q.weight"][0]
    weights = ((model.q(inputs) + 1)[..., kept] @ (model.k(inputs) + 1)[..., kept].mT / 8**0.5).softmax(-1)
    small = rebuild(model, plan, inputs)
    torch.testing.assert_close(small(inputs), model.out(weights @ inputs), rtol=0, atol=1e-12)
    assert bough.verify(model, small, plan, inputs).max_error < 1e-12


@pytest.mark.parametrize("gone", [0, 2])
def test_experts_are_told_by_their_place_among_the_kept(gone):
    torch.manual_seed(0)
    model, inputs = ROUTED["routed_experts"]()
    model, inputs = randomize(model.eval()), inputs.double()
    graph = bough.trace(model, inputs)
    scores = {**bough.score(graph, bough.importance.Magnitude()), "gate/expert": [float(i != gone) for i in range(4)]}
    plan = replace(bough.plan(graph, scores, keep={"gate/expert": 3}, on_conflict="rebuild"), rebuild=True)
    assert bough.verify(model, rebuild(model, plan, inputs), plan, inputs).max_error < 1e-9


@pytest.mark.parametrize(("kernel", "cut"), [(1, True), (3, False)])
def test_a_kernel_of_one_passes_what_it_slides_along(kernel, cut):
    class OverTokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Linear(5, 8), nn.Conv1d(6, 2, kernel), nn.Linear(9 - kernel, 3)

        def forward(self, x):
            return self.head(self.mix(self.embed(x)))

    model, inputs = randomize(OverTokens().eval()), torch.randn(2, 6, 5).double()
    graph = bough.trace(model, inputs)
    assert ("embed" in {g.name for g in graph.groups}) == cut
    if cut:
        plan = planned(model, inputs)
        assert bough.verify(model, rebuild(model, plan, inputs), plan, inputs).max_error < 1e-9
        assert plan.cost.macs == bough.trace(bough.cut(model, plan), inputs).cost().macs


def test_what_a_model_caches_from_run_to_run_is_typed_anew():
    cache = []

    class Caches(LiteralView):
        def forward(self, x):
            y = super().forward(x[:, cache[0]] if cache else x)
            cache[:] = cache or [torch.arange(5).flip(0)]
            return y

    model, inputs = randomize(Caches().eval()), torch.randn(2, 5).double()
    first, again = bough.trace(model, inputs), bough.trace(model, inputs)
    assert [(g.name, g.size) for g in again.groups] == [(g.name, g.size) for g in first.groups]


def test_inputs_by_keyword():
    model, inputs = built("literal_view")
    plan = planned(model, {"x": inputs})
    small = rebuild(model, plan, {"x": inputs})
    assert bough.verify(model, small, plan, {"x": inputs}).max_error < 1e-9


def test_cut_refuses_and_names_rebuild():
    model, inputs = built("literal_view")
    plan = bough.Plan.from_json(planned(model, inputs).to_json())
    assert plan.rebuild
    for refuse in (bough.cut, bough.cut_):
        with pytest.raises(PlanError, match=r"bough\.rebuild\(model, plan, example_inputs\)"):
            refuse(model, plan)


def test_where_python_agrees_there_is_nothing_to_rebuild():
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double(), torch.randn(2, 4).double()
    plan = planned(model, inputs)
    assert not plan.rebuild
    small = rebuild(model, plan, inputs)
    assert torch.equal(small(inputs), bough.cut(model, plan)(inputs))


def test_sizes_of_inputs_are_fixed_unless_they_are_said_to_vary():
    model, inputs = built("attention")
    plan = planned(model, inputs)
    more = torch.randn(5, 9, 5).double()
    with pytest.raises(AssertionError, match="Guard failed"):
        rebuild(model, plan, inputs)(more)
    vary = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    small = rebuild(model, plan, inputs, dynamic_shapes=(vary,))
    assert bough.verify(model, small, plan, more).max_error < 1e-9


def test_a_symbolic_size_times_a_cut_width():
    class Merged(LiteralView):
        def forward(self, x):
            return super().forward(self.a(x).reshape(x.shape[0] * 8).view(x.shape[0], 8) @ self.a.weight)

    model, inputs = randomize(Merged().eval()), torch.randn(2, 5).double()
    plan = planned(model, inputs, {"a": 3, "b": 5})
    small = rebuild(model, plan, inputs, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert bough.verify(model, small, plan, torch.randn(7, 5).double()).max_error < 1e-9


def test_it_trains_and_switches_modes():
    model, inputs = built("flattened")
    plan = planned(model, inputs)
    small = rebuild(model, plan, inputs)
    other = rebuild(model.train(), plan, inputs)
    assert (small.training, other.training) == (False, True)
    assert torch.equal(other.eval()(inputs), small(inputs))
    outputs = []
    for net in (small, other):
        net.train()
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(net.parameters(), 0.01)
        loss = net(inputs).square().sum()
        loss.backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())
        optimizer.step()
        outputs.append((loss.detach(), net.eval()(inputs)))
    assert outputs[0][0] == outputs[1][0]
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert not torch.equal(small.norm.running_mean, rebuild(model.eval(), plan, inputs).norm.running_mean)


def test_flags_ties_and_copies_stay():
    class Tied(LiteralView):
        def __init__(self):
            super().__init__()
            self.d, self.unused = nn.Linear(8, 6), nn.Linear(2, 2)
            self.d.weight = self.b.weight

        def forward(self, x):
            return super().forward(x) + self.c(self.d(self.a(x).reshape(-1, 8)))

    model, inputs = Tied().double().eval(), torch.randn(2, 5).double()
    model.a.bias.requires_grad_(False)
    small = rebuild(model, planned(model, inputs), inputs)
    for net in (small, copy.deepcopy(small)):
        assert net.d.weight is net.b.weight
        assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["a.bias"]
        assert set(net.state_dict()) == set(model.state_dict())
    assert small.a.weight.data_ptr() != copy.deepcopy(small).a.weight.data_ptr()
    assert torch.equal(copy.deepcopy(small)(inputs), small(inputs))


def test_layers_are_left_out_too():
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block() for _ in range(3))
    model, inputs = nn.Sequential(nn.Linear(5, 8), *blocks, nn.Linear(8, 3)), torch.randn(2, 5).double()
    model = randomize(model.eval())
    plan = planned(model, inputs, drop=["2"])
    assert plan.rebuild
    small = rebuild(model, plan, inputs)
    assert bough.verify(model, small, plan, inputs).max_error < 1e-9
    assert set(small.state_dict()) == set(bough.cut(model, planned(model, inputs, 1.0, "freeze", drop=["2"])).state_dict())
    assert sum(p.numel() for p in small.parameters()) == plan.cost.params
    assert small.get_submodule("2").up.weight.shape == (6, 4)


def test_saved_and_loaded(tmp_path):
    model, inputs = built("flattened")
    result = bough.prune(model, inputs, bough.Budget(params="30%"), on_conflict="rebuild")
    assert result.plan.rebuild
    assert result.report.equal
    bough.save(result, tmp_path)
    again = bough.load(tmp_path, lambda: built("flattened")[0], inputs)
    assert torch.equal(again(inputs), result.model(inputs))
    with pytest.raises(CheckpointError, match=r"give example_inputs.*torch\.export\.save"):
        bough.load(tmp_path, lambda: built("flattened")[0])
    with pytest.raises(CheckpointError, match=r"can not be pickled: use bough\.save"):
        torch.save(result.model, io.BytesIO())
    file = io.BytesIO()
    torch.export.save(torch.export.export(result.model, (inputs,)), file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(inputs), result.model(inputs))


def test_what_can_not_be_exported():
    class Branches(LiteralView):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else self.c(self.b(self.a(x)))

    model, inputs = Branches().double().eval(), torch.ones(2, 5).double()
    with pytest.raises(ExportError, match=r"can not make a program of Branches on these example_inputs: .*data-dependent"):
        rebuild(model, planned(model, inputs), inputs)


@pytest.mark.parametrize("dims", [(), ((1, 2),)])
def test_an_axis_of_one_left_is_not_squeezed(dims):
    class Squeezes(LiteralView):
        def forward(self, x):
            return super().forward(self.a(x)[..., None].squeeze(*dims).view(-1, 8) @ self.a.weight)

    model, inputs = randomize(Squeezes().eval()), torch.randn(2, 5).double()
    plan = planned(model, inputs, {"a": 1, "b": 3})
    assert bough.verify(model, rebuild(model, plan, inputs), plan, inputs).max_error < 1e-9


def test_numbers_without_a_meaning_are_named():
    class Best(LiteralView):
        def forward(self, x):
            best, _ = self.a(x).view(-1, 2, 4).flatten(1).topk(3)
            return super().forward(x) + best

    model, inputs = Best().double().eval(), torch.randn(2, 5).double()
    plan = planned(model, inputs, {"a/expert": 1, "a/expert#2": 1, "b": 3})
    assert plan.rebuild
    with pytest.raises(ConflictError, match=r"topk .*in the model, .*test_rebuild\.py:\d+.*numbers \[3\].*ignore"):
        rebuild(model, plan, inputs)


def test_uniform_plans_keep_the_class():
    model, inputs = built("attention")
    with pytest.raises(PlanError, match="uniform"):
        planned(model, inputs, uniform=True)
