"""Attributes that `forward` does not read: those that surely are a width follow the cut, the others are named as stale."""

import functools
import json
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import bough
from bough.cli.commands import app
from bough.planning.attributes.names import names_other, names_width
from bough.planning.attributes.source import quotients_of, uses_of


def half(model, x, **options):
    graph = bough.trace(model.eval(), x)
    generator = torch.Generator().manual_seed(1)
    scores = {g.name: torch.rand(g.size, generator=generator).double().numpy() for g in graph.groups}
    return bough.plan(graph, scores, **{"keep": 0.5, **options})


class Classifier(nn.Module):
    """`num_features` is of fc's input, and `hidden` of another width of the same size."""

    def __init__(self):
        super().__init__()
        self.num_features, self.classes = 32, 4
        self.a, self.b, self.fc = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.fc(self.features(x))

    def features(self, x):
        return self.b(self.a(x).relu()).relu()

    def reset_classifier(self, classes):
        self.fc = nn.Linear(self.num_features, classes)


def test_a_classifier_is_made_anew_after_the_cut():
    model, x = Classifier().eval(), torch.randn(2, 8)
    plan = half(model, x, keep={"a": 9, "b": 13})
    small = bough.cut(model, plan)
    assert plan.attributes == {":num_features": 13}
    assert not plan.stale
    small.reset_classifier(7)
    assert small(x).shape == (2, 7)
    wide = bough.mask(model, plan)
    assert torch.allclose(small.features(x), wide.features(x)[:, plan.kept["fc.weight"][1]], atol=1e-6)


class Fused(nn.Module):
    """A convolution in groups beside a normalized identity, which `fuse` adds up to one convolution."""

    def __init__(self, width, groups, kernel=3):
        super().__init__()
        self.in_channels = self.out_channels = width
        self.groups, self.kernel = groups, kernel
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.identity = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.conv(x) + self.identity(x)

    def fuse(self):
        bn, per_group = self.identity, self.in_channels // self.groups
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        weight = self.conv.weight.detach().clone()
        for i in range(self.in_channels):
            weight[i, i % per_group, self.kernel // 2, self.kernel // 2] += scale[i]
        one = nn.Conv2d(self.in_channels, self.out_channels, self.kernel, padding=self.kernel // 2, groups=self.groups)
        one.weight, one.bias = nn.Parameter(weight), nn.Parameter(self.conv.bias + bn.bias - bn.running_mean * scale)
        return one


@pytest.mark.parametrize("groups", [1, 4, 8, 32])
def test_reparameterizing_after_the_cut_is_equal(groups):
    """With groups that are cut, the number of groups before the cut gives other numbers, and no error."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 1), Fused(32, groups), nn.ReLU(), Fused(32, groups), nn.Flatten(), nn.Linear(32 * 36, 4)
    ).double().eval()  # fmt: skip
    for block in (model[1], model[3]):
        nn.init.normal_(block.identity.weight)
        nn.init.uniform_(block.identity.running_var, 0.5, 1.5)
        nn.init.normal_(block.identity.running_mean)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    small = bough.cut(model, half(model, x))
    before = small(x)
    small[1], small[3] = small[1].fuse(), small[3].fuse()
    assert small[1].weight.shape[0] < 32
    assert torch.allclose(small(x), before, atol=1e-12)


class Split(nn.Module):
    """Two halves, split by a number in `forward_split` and by chunk in `forward`."""

    def __init__(self, width, share=0.5):
        super().__init__()
        self.c = int(width * share)
        self.cv1 = nn.Conv2d(width, 2 * self.c, 1)
        self.m = nn.Conv2d(self.c, self.c, 3, padding=1)
        self.cv2 = nn.Conv2d(3 * self.c, width, 1)

    def forward(self, x):
        a, b = self.cv1(x).relu().chunk(2, 1)
        return self.cv2(torch.cat([a, b, b + self.m(b)], 1))

    def forward_split(self, x):
        a, b = self.cv1(x).relu().split((self.c, self.c), 1)
        return self.cv2(torch.cat([a, b, b + self.m(b)], 1))


def test_a_method_that_splits_by_a_number_works_or_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ReLU(), Split(32), nn.ReLU(), Split(32, 0.25), nn.Flatten(), nn.Linear(512, 3)
    )
    x = torch.randn(2, 3, 4, 4)
    plan = half(model, x)
    small = bough.cut(model, plan)
    for i in (2, 4):
        inner = torch.randn(2, small[i].cv1.in_channels, 4, 4)
        try:
            assert torch.equal(small[i](inner), small[i].forward_split(inner))
        except RuntimeError:
            assert any(s.name == f"{i}.c" and "forward_split" in s.methods for s in plan.stale)


def block(width, out):
    return nn.Sequential(nn.Linear(width, out), nn.ReLU())


class Opaque(nn.Module):
    """Its source does not say of what `n` is the width, but its instances have it at several sizes."""

    def __init__(self, net, n):
        super().__init__()
        self.net, self.n, self.steps = net, n, 16

    def forward(self, x):
        return self.net(x)


def test_instances_of_a_class_tell_its_widths():
    model = nn.Sequential(Opaque(block(8, 16), 16), Opaque(block(16, 32), 32), Opaque(block(32, 48), 48), nn.Linear(48, 3))
    plan = half(model, torch.randn(2, 8), keep={"0*": 7, "1*": 11, "2*": 5})
    assert plan.attributes == {"0:n": 7, "1:n": 11, "2:n": 5}
    assert not plan.stale  # 16 steps are no width: in the other instances nothing has this size


class Equal(nn.Module):
    """Widths that are equal before the cut only."""

    def __init__(self, width=32):
        super().__init__()
        self.width, self.k, self.img_size = width, 32, 32
        self.a, self.b, self.c = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


def test_where_several_widths_may_be_meant_the_attribute_is_stale():
    model, x = Equal(), torch.randn(2, 8)
    plan = half(model, x, keep={"a": 9, "b": 13})
    small = bough.cut(model, plan)
    assert not plan.attributes
    assert (small.width, small.k, small.img_size) == (32, 32, 32)
    assert {s.name: s.sizes for s in plan.stale} == {"width": (9, 13), "k": (9, 13)}
    assert "stale: width = 32, the axis now has 9 or 13" in str(plan)
    assert bough.Plan.from_json(plan.to_json()) == plan


class Number(nn.Module):
    """`forward` computes a number from its width."""

    def __init__(self):
        super().__init__()
        self.hidden_dim = 32
        self.a, self.norm, self.b = nn.Linear(8, 32), nn.LayerNorm(4), nn.Linear(32, 4)

    def forward(self, x):
        return self.norm(self.b(self.a(x).relu())) + 1 / self.hidden_dim


def test_a_number_that_forward_computes_stays():
    model, x = Number().double(), torch.randn(2, 8, dtype=torch.float64)
    plan = half(model, x)
    small = bough.cut(model, plan)
    assert small.hidden_dim == 32
    assert [s.name for s in plan.stale] == ["hidden_dim"]
    assert bough.verify(model, small, plan, x).equal


@dataclass
class Sizes:
    inner: int = 32
    others: list[int] = field(default_factory=lambda: [5, 32])


class Everywhere(nn.Module):
    """The width 32 in a dataclass, a tuple, a dict, a partial, a closure and the class."""

    planes = 32

    def __init__(self):
        super().__init__()
        width = 32
        self.sizes, self.chs, self.info = Sizes(), (8, 32), {"width": 32, "module": "b"}
        self.make, self.again = functools.partial(nn.Linear, width, bias=False), lambda: nn.Linear(width, 4)
        self.a, self.b = nn.Linear(8, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.b(self.a(x).relu())


def test_widths_in_containers_and_functions_are_named():
    plan = half(Everywhere(), torch.randn(2, 8), keep=0.25)
    assert {(s.name, s.sizes) for s in plan.stale} == {
        (name, (8,)) for name in ("sizes.inner", "sizes.others[1]", "chs[1]", "info.width", "make[0]", "again.width", "planes")
    }
    assert not plan.attributes


def test_a_width_beside_the_name_of_a_module_is_of_its_output():
    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage1, self.stage2, self.head = block(8, 32), block(32, 32), nn.Linear(32, 4)
            self.feature_info = [{"num_chs": 32, "module": "stage1"}, {"num_chs": 32, "module": "stage2"}]

        def forward(self, x):
            return self.head(self.stage2(self.stage1(x)))

    model = Stages()
    small = bough.cut(model, half(model, torch.randn(2, 8), keep={"stage1*": 9, "stage2*": 13}))
    assert [info["num_chs"] for info in small.feature_info] == [9, 13]
    assert [info["num_chs"] for info in model.feature_info] == [32, 32]


def test_only_ten_are_printed():
    class Many(Equal):
        def __init__(self):
            super().__init__()
            for i in range(20):
                setattr(self, f"k{i}", 32)

    lines = str(half(Many(), torch.randn(2, 8), keep={"a": 9, "b": 13})).splitlines()
    printed = [line for line in lines if line.startswith("stale")]
    assert len(printed) == 12
    assert "22 attributes keep" in printed[0]
    assert "12 more" in printed[-1]


def test_composed_plans_name_what_was_stale_before():
    model, x = Equal(), torch.randn(2, 8)
    first = half(model, x, keep={"a": 9, "b": 13})
    second = half(bough.cut(model, first), x)
    both = bough.planning.compose.compose(first, second)
    assert {s.name: s.sizes for s in both.stale} == {"width": (), "k": ()}
    assert "width = 32, the axis was cut" in str(both)


def test_the_command_line_names_them(tmp_path, monkeypatch):
    (tmp_path / "attributed.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.k, self.a, self.b = 32, nn.Linear(8, 32), nn.Linear(32, 4)\n"
        "    def forward(self, x):\n"
        "        return self.b(self.a(x).relu())\n"
        "    def again(self):\n"
        "        return self.k\n"
        "def build():\n"
        "    return Net().eval(), torch.randn(2, 8)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = ["prune", "attributed:build", "--budget", "params=50%", "--importance", "l2"]
    printed = CliRunner().invoke(app, run)
    assert printed.exit_code == 0, printed.output
    assert "stale: k = 32, the axis now has 15 (read by again)" in printed.output
    answer = json.loads(CliRunner().invoke(app, [*run, "--json"]).stdout)
    assert answer["stale"] == [{"attribute": "k", "value": 32, "sizes": [15], "methods": ["again"]}]


def test_names():
    for name in ("num_features", "in_chs", "hidden_size", "embed_dim", "hiddenDim"):
        assert (names_width(name), names_other(name)) == (True, False), name
    for name in ("img_size", "kernel_size", "num_classes", "window_size", "depths"):
        assert (names_width(name), names_other(name)) == (False, True), name
    assert not names_width("k")
    assert not names_other("k")


def test_source_of_a_class():
    found = {name: {(u.children, u.function, u.argument) for u in uses} for name, uses in uses_of(Fused).items()}
    assert (("conv",), "Conv2d", 0) in found["in_channels"]
    assert (("conv",), "Conv2d", 1) in found["out_channels"]
    assert (("conv",), "Conv2d", "groups") in found["groups"]
    assert (("identity",), "BatchNorm2d", 0) in found["in_channels"]
    assert uses_of(type("Made", (nn.Module,), {})) == {}  # a class without source


class Mixer(nn.Module):
    """Layers of one width in the source and of several after a cut, and a classifier of a width computed from an attribute."""

    def __init__(self):
        super().__init__()
        self.width = 32
        self.stem = nn.Linear(8, 32)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(3)))
        self.reset(4)

    def reset(self, classes):
        self.hidden = self.width * self.factor()
        self.fc = nn.Linear(self.hidden, classes)

    def factor(self):
        return 1

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x).relu()))


def test_a_method_makes_anew_what_it_computes_from_an_attribute():
    model, x = Mixer().eval(), torch.randn(2, 8)
    plan = half(model, x, keep={"stem": 7, "blocks.0.0": 11, "blocks.1.0": 13, "blocks.2.0": 17})
    small = bough.cut(model, plan)
    assert (small.width, small.hidden) == (17, 17)
    small.reset(5)
    assert small(x).shape == (2, 5)


class Reassigned(nn.Module):
    """A local name with several values, of which the attribute has the last, and a width computed from an attribute."""

    def __init__(self):
        super().__init__()
        last, layers = 8, []
        for width in (32, 32):
            layers.append(nn.Linear(last, width))
            last = width
        self.features = nn.Sequential(*layers)
        self.out_dim = last
        both = self.out_dim * 2
        self.glu = nn.Sequential(nn.Linear(last, both), nn.GLU())
        self.fc = nn.Linear(last, 4)

    def forward(self, x):
        return self.fc(x + self.glu(x)) if x.shape[-1] == self.out_dim else self.forward(self.features(x))


def test_a_name_is_followed_behind_its_last_assignment():
    uses = {(u.children, u.function, u.argument) for u in uses_of(Reassigned)["out_dim"]}
    assert uses == {(("fc",), "Linear", 0), (("glu",), "Linear", 0), (("glu",), "Linear", None)}
    plan = half(Reassigned(), torch.randn(2, 8), keep={"features.0": 9})
    assert plan.attributes.get(":out_dim", 32) == plan.groups["features.1"][0]


class GroupedQueries(nn.Module):
    """Attention whose key-value heads torch repeats; the number of repeats is read where there is a mask."""

    def __init__(self, width=24, heads=4, shared=2):
        super().__init__()
        self.heads, self.shared, self.head_dim = heads, shared, width // heads
        self.repeats = heads // shared
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, shared * self.head_dim) for _ in range(2))

    def forward(self, x, mask=None):
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if mask is not None:
            k, v = (t.repeat_interleave(self.repeats, 1) for t in (k, v))
        made = nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=mask is None)
        return self.out(made.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("heads", "shared"), [(4, 2), (9, 3), (8, 2)])
def test_a_quotient_in_the_source_is_the_number_of_repeats(heads, shared):
    """At (4, 2) and (9, 3) repeats and key-value heads have one size, and only the source distinguishes them."""
    torch.manual_seed(0)
    model, x = GroupedQueries(6 * heads, heads, shared).eval(), torch.randn(2, 5, 6 * heads)
    assert quotients_of(GroupedQueries)["repeats"] == ("heads", "shared")
    graph = bough.trace(model, x)
    repeats = next(
        g for g in graph.groups if g.size == heads // shared and {m.name for m in g.members}.isdisjoint({"k.weight"})
    )
    small = bough.cut(model, bough.plan(graph, bough.score(graph, "l2"), keep={repeats.name: 1}))
    assert small.repeats == 1
    assert small(x, torch.ones(5, 5, dtype=torch.bool)).sub(small(x)).abs().max() < 1e-5
