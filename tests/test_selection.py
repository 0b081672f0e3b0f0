"""`ignore` and `only`: what is named keeps all its dims, in every stage, however it is named."""

import functools
import json

import pytest
import torch
from torch import nn

import bough
from bough.errors import BudgetError, PlanError
from bough.tracing.selection import as_names
from tests.test_cli import run

IDS = torch.arange(12).reshape(2, 6)
BUDGET = bough.Budget(macs="60%")


class Sentence(nn.Module):
    """An embedding and a table of positions, both with the units of one stream in their last dim."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.pos, self.norm = nn.Embedding(50, 32), nn.Parameter(torch.randn(1, 6, 32)), nn.LayerNorm(32)
        self.mid, self.out = nn.Sequential(nn.Conv1d(32, 24, 3), nn.ReLU(), nn.Conv1d(24, 20, 1)), nn.Conv1d(128, 4, 1)
        self.tail = nn.Conv1d(20, 128, 1)

    def forward(self, ids):
        return self.out(self.tail(self.mid(self.norm(self.emb(ids) + self.pos).transpose(1, 2)).relu()).relu())


class Residual(nn.Module):
    """A stream that `stem` and `block.up` compute, and hidden units that `block.down` computes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.bn = nn.Linear(5, 16, bias=False), nn.BatchNorm1d(16)
        self.block = nn.ModuleDict({"down": nn.Linear(16, 12), "act": nn.ReLU(), "up": nn.Linear(12, 16)})
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.bn(self.stem(x))
        return self.head(x + self.block["up"](self.block["act"](self.block["down"](x))))


class Tied(nn.Module):
    """The embedding's weight is the head's, too."""

    def __init__(self):
        super().__init__()
        self.emb, self.mid, self.head = nn.Embedding(11, 16), nn.Linear(16, 16), nn.Linear(16, 11, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids):
        x = self.emb(ids)
        return self.head(x + self.mid(x))


def sentence():
    """For the command line."""
    return Sentence().eval(), IDS


def changed(model, small):
    """The names of parameters and buffers whose shapes differ."""
    before, after = model.state_dict(), small.state_dict()
    return {n for n in before if before[n].shape != after[n].shape}


def pruned(model, x, **options):
    return bough.prune(model, x, BUDGET, importance="l2", refit=False, **options).model


def planned(model, x, **options):
    graph = bough.trace(model, x)
    return bough.cut(model, bough.plan(graph, bough.score(graph, "l2"), BUDGET, **options))


def iterated(model, x, **options):
    return bough.iterate(model, x, BUDGET, lambda small, step: None, steps=2, **options).model


WAYS = pytest.mark.parametrize("way", [pruned, planned, iterated])


@WAYS
@pytest.mark.parametrize("name", ["emb", "emb.weight", "pos", "mid.0", "mid.0.weight", "norm", "out"])
def test_what_is_ignored_keeps_every_dim(way, name):
    model = Sentence().eval()
    left = changed(model, way(model, IDS, ignore=[name]))
    assert left
    assert not any(n == name or n.startswith(f"{name}.") for n in left)


@WAYS
@pytest.mark.parametrize(
    "given",
    [
        lambda net: ["mid"],
        lambda net: "mid",
        lambda net: ["mid.*"],
        lambda net: ["m?d"],
        lambda net: [net.mid],
        lambda net: net.mid,  # a Sequential can be gone through, and is one entry
        lambda net: [net.mid[0], "mid.2"],
        lambda net: (n for n in ("mid.0", "mid.2")),
        lambda net: {nn.Sequential},
        lambda net: nn.Sequential,
    ],
)
def test_names_patterns_modules_and_types_are_alike(way, given):
    model = Sentence().eval()
    small = way(model, IDS, ignore=given(model))
    assert not {n for n in changed(model, small) if n.startswith("mid")}


def test_trace_and_plan_leave_the_same_groups():
    for model, x in ((Sentence(), IDS), (Residual(), torch.randn(4, 5)), (Tied(), IDS % 11)):
        graph = bough.trace(model.eval(), x)
        scores = bough.score(graph, "l2")
        modules = [n for n, m in model.named_modules() if n and any(True for _ in m.parameters())]
        for name in [*modules, *dict(model.named_parameters())]:
            traced = {g.name for g in bough.trace(model, x, ignore=[name]).groups}
            kept = bough.plan(graph, scores, keep=0.5, ignore=[name]).groups if traced else {}
            assert traced == {g for g, (now, before) in kept.items() if now < before}, name


def test_reasons_name_what_was_asked():
    model = Sentence().eval()
    for given, name in (["emb"], "emb"), (["e*"], "e*"), ([model.emb], "emb"), ([nn.Embedding], "Embedding"):
        graph = bough.trace(model, IDS, ignore=given)
        assert f"ignored: {name}" in [f.reason for f in graph.frozen]
        whole = bough.trace(model, IDS)
        plan = bough.plan(whole, bough.score(whole, "l2"), keep=0.5, ignore=given)
        assert list(plan.frozen.values()) == [f"ignored: {name}"]
    (reason,) = {f.reason for f in bough.trace(model, IDS, only=["mid.0"]).frozen if "only" in f.reason}
    assert reason == "outside of only=['mid.0']"


def test_every_name_of_a_tied_weight_counts():
    model = Tied().eval()
    for name in ("emb", "head", "head.weight"):
        assert bough.trace(model, IDS % 11, ignore=[name]).groups == ()


def test_groups_can_be_named():
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    names = [g.name for g in bough.trace(layer, x).groups]
    (heads,) = (n for n in names if n.endswith("/head"))
    for given in (heads, "*/head"):
        assert [g.name for g in bough.trace(layer, x, ignore=given).groups] == [n for n in names if n != heads]
        assert [g.name for g in bough.trace(layer, x, only=given).groups] == [heads]


@WAYS
def test_only_cuts_what_nothing_else_computes(way):
    """Its readers follow; the stream is computed by two layers, and norms and biases need not be named."""
    model, x = Residual().eval(), torch.randn(4, 5)
    way = functools.partial(way, model, x)
    hidden = {"block.down.weight", "block.down.bias", "block.up.weight"}
    with pytest.raises(BudgetError):  # all that it may cut does not reach the budget
        bough.prune(model, x, bough.Budget(macs="20%"), only=["block.down"])
    assert changed(model, way(only=["block.down"])) == hidden
    stream = {n for n in model.state_dict() if n.startswith(("stem", "bn", "head.weight")) and "num_batches" not in n}
    assert changed(model, way(only=["stem", model.block["up"]])) == stream | {
        "block.down.weight",
        "block.up.weight",
        "block.up.bias",
    }
    assert changed(model, way(only=[nn.Linear], ignore=["stem"])) == hidden


def test_only_says_who_else_computes_the_units():
    model, x = Residual().eval(), torch.randn(4, 5)
    for call in (lambda **o: bough.trace(model, x, **o), lambda **o: planned(model, x, **o)):
        with pytest.raises(PlanError, match=r"^only=\['stem'\] leaves nothing to cut: block\.up also computes the units of"):
            call(only=["stem"])
        with pytest.raises(PlanError, match=r"^only=\['bn'\] leaves nothing to cut: they compute no units"):
            call(only=["bn"])
        with pytest.raises(PlanError, match=r"^only=\[\] leaves nothing to cut"):
            call(only=[])


def test_depthwise_convolutions_follow():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    ).eval()
    (group,) = bough.trace(model, torch.randn(1, 3, 5, 5), only=["0"]).groups
    assert group.size == 8


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("block.dwon", r"={option}'block.dwon' names no module, parameter or group of Residual; did you mean 'block.down'"),
        ("blocks.*", r"names no module, parameter or group of Residual; "),
        ("block.act", "has no parameters"),
        (nn.ReLU, "has no parameters"),
        (nn.Conv2d, "Residual has no module of this type"),
        (nn.Linear(2, 2), "is no part of Residual"),
        (int, "no name, pattern, module or module type"),
    ],
)
@pytest.mark.parametrize("option", ["ignore", "only"])
def test_what_names_nothing_is_an_error(entry, said, option):
    model, x = Residual().eval(), torch.randn(4, 5)
    graph = bough.trace(model, x)
    said = said.replace("={option}", f"{option}=")
    for call in (
        lambda **o: bough.trace(model, x, **o),
        lambda **o: bough.plan(graph, bough.score(graph, "l2"), keep=0.5, **o),
        lambda **o: bough.prune(model, x, BUDGET, **o),
        lambda **o: iterated(model, x, **o),
        lambda **o: bough.compare(model, x, ["l2"], [BUDGET], lambda m: 0.0, **o),
    ):
        with pytest.raises(PlanError, match=said) as error:
            call(**{option: [entry]})
        assert str(error.value).startswith(option)
        assert "\n" not in str(error.value)


def test_names_hold_for_copies():
    model = Residual()
    assert as_names(model, [model.block, nn.BatchNorm1d, "he*"], "ignore") == ("block", "bn", "he*")


def test_removed_and_kept_are_all_there_was():
    model = Sentence().eval()
    plan = bough.prune(model, IDS, BUDGET, importance="l2").plan
    removed = plan.removed
    assert removed.keys() == plan.kept.keys() == changed(model, bough.cut(model, plan))
    for name, dims in plan.kept.items():
        assert removed[name].keys() == dims.keys()
        for dim, kept in dims.items():
            assert sorted(kept + removed[name][dim]) == list(range(model.state_dict()[name].shape[dim]))
            assert removed[name][dim] == sorted(removed[name][dim]) != []
    assert bough.Plan.from_json(plan.to_json()).removed == removed
    assert "plan.removed" in str(plan)


def test_the_command_line_leaves_the_same_alone(tmp_path):
    reference, words = "tests.test_selection:sentence", ["--budget", "macs=60%", "--importance", "l2", "--json"]
    model = Sentence().eval()
    for i, (option, name) in enumerate([("--ignore", "emb"), ("--ignore", "p*"), ("--only", "mid.*")]):
        out = tmp_path / str(i)
        given = json.loads(run("prune", reference, *words, option, name, "--out", str(out)))
        api = bough.prune(model, IDS, BUDGET, importance="l2", **{option[2:]: [name]})
        assert given["groups"] == {n: list(counts) for n, counts in api.plan.groups.items()}
        small = bough.load(out, lambda: Sentence().eval())
        assert changed(model, small) == changed(model, api.model)
        assert not {n for n in changed(model, small) if n.split(".")[0] in ("emb", "pos")}


def test_keep_and_minimum_take_modules():
    """A name or a pattern of modules, a module or a type of modules, for the groups that nothing else computes."""
    model, x = Sentence().eval(), IDS
    graph = bough.trace(model, x)
    scores = bough.score(graph, "l2")
    for entry in ("mid", "m?d", model.mid, nn.Sequential):
        by_module = bough.plan(graph, scores, keep={entry: 0.5}).groups
        assert by_module == bough.plan(graph, scores, keep={"mid.*": 0.5}).groups
        least = bough.plan(graph, scores, keep=0.1, minimum={entry: 0.5}).groups
        assert {n: (n.startswith("mid"), k >= size / 2) for n, (k, size) in least.items()} == {
            n: (n.startswith("mid"),) * 2 for n in least
        }
    last = bough.plan(graph, scores, keep={"*": 0.5, model.mid[0]: 18}).groups
    assert last["mid.0"] == (18, 24)
    assert last["mid.2"] == (10, 20)
    shared = bough.trace(Residual().eval(), torch.randn(4, 5))
    with pytest.raises(PlanError, match=r"^keep=\{'block.up': 0.5\} leaves nothing to cut: stem also computes the units"):
        bough.plan(shared, bough.score(shared, "l2"), keep={"block.up": 0.5})
    one = bough.plan(shared, bough.score(shared, "l2"), keep={"stem": 0.5}).groups
    for together in ({"stem": 0.5, "block.up": 0.5}, {"block.up": 0.5, shared.model.stem: 0.5}):
        assert bough.plan(shared, bough.score(shared, "l2"), keep=together).groups == one
    with pytest.raises(PlanError, match=r"stem also computes the units of group 'stem'.* ask the same of each"):
        bough.plan(shared, bough.score(shared, "l2"), keep={"stem": 0.5, "block.up": 0.25})
    with pytest.raises(PlanError, match="keep names 'mud', which is no group"):
        bough.plan(graph, scores, keep={"mud": 0.5})
    with pytest.raises(PlanError, match="minimum"):
        bough.plan(graph, scores, keep=0.5, minimum={nn.LSTM: 0.5})
