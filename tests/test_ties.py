"""`tie`: parameters and buffers that the user ties by hand are cut alike, though nothing in `forward` says so."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bough
from bough.errors import PlanError
from bough.exporting.checkpoint import load_plan
from tests.test_cli import run

X = torch.randn(4, 3, 8, 8)
BUDGET = bough.Budget(params="50%")


class Attention(nn.Module):
    """Self-attention whose head size the class computes from its own attributes."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, self.heads * self.head_dim))


class Encoder(nn.Module):
    """A convolution, a batch norm, attention over the positions and a hidden layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.attention = Attention(16, 4)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        x = x + self.attention(x)
        return (x + self.down(self.up(x).relu())).mean(1)


class SelfDistilled(nn.Module):
    """A student and a teacher that is a moving average of it, outside of `forward` unless `both`."""

    def __init__(self, both=False):
        super().__init__()
        torch.manual_seed(0)
        self.student, self.head, self.both = Encoder(), nn.Linear(16, 5), both
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        for p in self.teacher.parameters():  # later in training: near the student, and not the same
            p.add_(0.3 * torch.randn_like(p))

    def forward(self, x):
        out = self.head(self.student(x))
        return (out, self.head(self.teacher(x))) if self.both else out

    @torch.no_grad()
    def update(self):
        for mine, its in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(its, 0.1)


def distilled():
    """For the command line."""
    return SelfDistilled().eval(), X


def kept_of(plan, part):
    return {n.removeprefix(f"{part}."): dims for n, dims in plan.kept.items() if n.startswith(f"{part}.")}


def assert_alike(plan):
    assert kept_of(plan, "student")
    assert kept_of(plan, "student") == kept_of(plan, "teacher")


def masked(model, plan, part):
    """The original's part in which what leaves is zero, as an oracle of its own."""
    full = bough.mask(model, plan)
    return full.get_submodule(part)


TIES = [
    {"teacher.*": "student.*"},
    {"teacher": "student"},
    {"student*": "teacher*"},
    {"teacher.conv": "student.conv", "teacher.norm": "student.norm", "teacher.*n.*": "student.*n.*", "teacher.up": "student.up",
     "teacher.down": "student.down"},
]  # fmt: skip


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("tie", TIES, ids=str)
def test_a_teacher_is_cut_as_its_student(tie, both):
    model = SelfDistilled(both).eval()
    small = bough.prune(model, X, BUDGET, tie=tie, importance="l2", refit=False)
    assert_alike(small.plan)
    net = small.model
    net.teacher.load_state_dict(net.student.state_dict())
    assert torch.equal(net.teacher(X), net.student(X))
    net.update()
    net.train()
    (net.student(X) - net.teacher(X)).square().mean().backward()
    assert not any(small.plan.stale)


def test_without_a_tie_they_are_not():
    """So the tests above show something."""
    model = SelfDistilled(both=True).eval()
    plan = bough.prune(model, X, BUDGET, importance="l2", refit=False).plan
    assert kept_of(plan, "student") != kept_of(plan, "teacher")


def test_a_teacher_that_no_call_reaches_computes_what_its_masked_original_does():
    """Heads, head dims with the default scale of attention, and integer attributes of the teacher's own modules."""
    model = SelfDistilled().eval().double()
    graph = bough.trace(model, X.double(), tie={model.teacher: model.student})
    for keep in ({g.name: 0.5} for g in graph.groups if g.exact):
        plan = bough.plan(graph, bough.score(graph, "l2"), keep=keep)
        assert_alike(plan)
        small = bough.cut(model, plan)
        for part in ("student", "teacher"):
            got = small.get_submodule(part)(X.double())
            expected = masked(model, plan, part)(X.double())
            if got.shape == expected.shape:
                assert torch.allclose(got, expected), (keep, part)
            else:  # the stream itself is cut
                left = plan.kept["head.weight"][1]
                assert torch.allclose(got, expected[:, list(left)]), (keep, part)


def test_what_is_said_of_it():
    graph = bough.trace(SelfDistilled().eval(), X, tie={"teacher.*": "student.*"})
    assert graph.notes == ["teacher: cut as student is, on whose inputs it was run"]
    assert not graph.unreached
    assert all({m.name.split(".")[0] for m in g.members} >= {"student", "teacher"} for g in graph.groups)


def test_verify_compares_the_teacher_too():
    model = SelfDistilled().eval()
    result = bough.prune(model, X, BUDGET, tie={"teacher.*": "student.*"}, importance="l2", refit=False)
    assert [o.call for o in result.report.outputs] == ["", "teacher on the inputs of student"]
    assert "tied by hand: teacher.* and student.*" in str(result.plan)
    with torch.no_grad():
        result.model.teacher.down.bias += 1
    assert not bough.verify(model, result.model, result.plan, X).equal


def test_tensors_alone_follow_where_the_tied_module_can_not_be_run():
    """A teacher of another class that takes other inputs: its parameters have the types of the student's."""

    class Bank(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
            self.up, self.down, self.bank = nn.Linear(16, 24), nn.Linear(24, 16), Bank()

        def forward(self, x):
            return self.head(self.down(self.up(self.stem(x)).relu()))

    net, x = Net().eval(), torch.randn(2, 6)
    result = bough.prune(net, x, BUDGET, tie={"bank.*": "*"}, importance="l2", refit=False)
    for name in ("up.weight", "up.bias", "down.weight"):
        assert result.plan.kept[f"bank.{name}"] == result.plan.kept[name]
    small = result.model
    assert small.bank.up.out_features == small.up.out_features
    small.bank.load_state_dict({k: v for k, v in small.state_dict().items() if k.startswith(("up", "down"))})


class Heads(nn.Module):
    """Two critics of other layouts: `q_a` as linear layers, `q_b` as bare parameters."""

    def __init__(self, spare):
        super().__init__()
        torch.manual_seed(0)
        self.q_a = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
        self.q_b, self.out = nn.Parameter(torch.randn(6, 32)), nn.Parameter(torch.randn(32, 1))
        self.spare = nn.Parameter(torch.randn(32, 9)) if spare else None

    def forward(self, x):
        return self.q_a(x), (x @ self.q_b).relu() @ self.out


def test_dims_of_two_tensors_can_be_tied():
    x = torch.randn(5, 6)
    assert len(bough.trace(Heads(spare=False), x).groups) == 2
    model = Heads(spare=True)  # what no call reads may follow one or the other: which, only a tie can say
    assert any(u.name == "spare" and "left as it is" in u.treatment for u in bough.trace(model, x).unreached)
    graph = bough.trace(model, x, tie={("q_a.0.weight", 0): ("q_b", -1), ("spare", 0): ("out", 0)})
    (group,) = graph.groups
    assert {("q_a.0.weight", 0), ("q_b", 1), ("out", 0), ("q_a.2.weight", 1), ("spare", 0)} <= {
        (m.name, m.dim) for m in group.members
    }
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=0.5)
    assert plan.kept["q_b"] == {1: plan.kept["q_a.0.weight"][0]}
    assert plan.kept["spare"] == {0: plan.kept["out"][0]}
    small = bough.cut(model, plan)
    assert bough.verify(model, small, plan, x).equal
    assert small.spare.shape == (16, 9)


def test_checkpoints_and_further_steps_keep_a_tie(tmp_path):
    model = SelfDistilled().eval()
    done = bough.iterate(model, X, BUDGET, lambda small, step: small.update(), steps=3, tie={model.teacher: model.student})
    assert_alike(done.plan)
    bough.save(done, tmp_path / "small")
    again = bough.load(tmp_path / "small", SelfDistilled)
    for name, tensor in done.model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    again.teacher.load_state_dict(again.student.state_dict())
    assert torch.equal(again.eval().teacher(X), again.student(X))


def test_the_command_line_ties_too(tmp_path):
    args = ["tests.test_ties:distilled", "--tie", "teacher.*=student.*", "--json"]
    groups = json.loads(run("inspect", *args))["groups"]
    assert all({name.split(".")[0] for name, _ in g["members"]} >= {"student", "teacher"} for g in groups)
    run("prune", *args, "--budget", "params=50%", "--importance", "l2", "--no-refit", "--out", str(tmp_path / "small"))
    assert_alike(load_plan(tmp_path / "small"))


WRONG = [
    ({"mentor.*": "student.*"}, r"'mentor\.\*' names no module, parameter or buffer"),
    ({"teacher.*": "pupil.*"}, r"nothing that 'pupil\.\*' names corresponds to teacher\.conv\.weight"),
    ({"teacher.*": "student"}, r"each \* stands for the same text"),
    ({"teacher": "teacher"}, "twice"),
    ({"teacher.up.weight": "student.down.weight"}, r"teacher\.up\.weight has the shape \[24, 16\], and student\.down\.weight"),
    ({("teacher.up.weight", 0): ("student.up.weight", 1)}, "24 units in dim 0, and student.up.weight has 16 in dim 1"),
    ({("teacher.up.weight", 2): ("student.up.weight", 0)}, "has 2 dims, so it has no dim 2"),
    ({("teacher.up", 0): ("student.up.weight", 0)}, "names no parameter or buffer: 'teacher.up'"),
    ({("teacher.up.weight", 0): "student.up.weight"}, r"one side is a \(tensor, dim\)"),
    ({nn.Linear(2, 2): "student"}, "is no part inside SelfDistilled"),
    ({3: "student"}, "3 is no name, pattern, module"),
]  # fmt: skip


@pytest.mark.parametrize(("tie", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_can_not_be_tied_is_one_error(tie, said):
    with pytest.raises(PlanError, match=said) as raised:
        bough.trace(SelfDistilled().eval(), X, tie=tie)
    assert "\n" not in str(raised.value)


def test_what_has_no_counterpart_is_listed():
    model = SelfDistilled().eval()
    model.teacher.register_buffer("center", torch.zeros(16))
    graph = bough.trace(model, X, tie={"teacher.*": "student.*"})
    plan = bough.plan(graph, bough.score(graph, "l2"), keep={"student.up": 0.5})
    for notes in (graph.notes, plan.notes):
        assert [n for n in notes if "counterpart" in n] == [
            "tie={'teacher.*': 'student.*'}: teacher.center has no counterpart, and is not tied"
        ]
