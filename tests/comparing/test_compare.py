"""`compare`: each row is what its stages give, made once, whatever is killed or fails in between."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bough
from bough.comparing import Comparison, Row, compare
from bough.comparing.naming import named
from bough.errors import ArgumentError, BoughError, BudgetError, ComparisonError, PlanError
from bough.importance import Magnitude, Random, Shapley, Taylor, Wanda
from tests import pages
from tests.test_cli import run
from tests.zoo.tasks import same_mlp

HALF, MOST = bough.Budget(params="50%"), bough.Budget(macs="80%")
X = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))
BATCHES = [(x, x[:, :3].argmax(1)) for x in X.split(8)]
MODEL = "tests.zoo.tasks:same_mlp"


def batches():
    return BATCHES


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def off(model):
    return float((model(X) - same_mlp()[0](X)).square().mean())


class Counted:
    """Counts its calls, and fails at those given."""

    def __init__(self, fails=()):
        self.calls, self.fails = 0, fails

    def __call__(self, model):
        self.calls += 1
        if self.calls in self.fails:
            raise ZeroDivisionError("no luck")
        return {"off": off(model), "width": model[0].out_features}


class Scorer:
    """A criterion that counts its calls."""

    calls = 0

    def __call__(self, graph):
        self.calls += 1
        return Magnitude(p=1)(graph)


def results(found):
    """All but the seconds."""
    return [{k: v for k, v in row.to_dict().items() if k != "seconds"} for row in found.rows]


@pytest.mark.parametrize("refit", [False, True])
def test_rows_are_what_the_stages_give(refit):
    model, inputs = same_mlp()
    made = {"l2": Magnitude(p=2), "wanda": Wanda(), "taylor": Taylor(loss), "random": Random(7)}
    ways = ["global", bough.allocation.Greedy(relative=False)]
    found = compare(
        model, inputs, ["l2", "wanda", "taylor"], [HALF, MOST], off, allocations=ways, seeds=[7], data=BATCHES, loss=loss,
        refit=refit, round_to=2,
    )  # fmt: skip
    assert [r.key for r in found.rows] == [
        ("dense", "", "", None),
        *(
            (c, w, b, 7 if c == "random" else None)
            for c in made for w in ("global", "Greedy(relative=False)") for b in ("params=50%", "macs=80%")
        ),
    ]  # fmt: skip
    for row in found.rows[1:]:
        way = ways[row.allocation != "global"]
        budget = HALF if row.budget == "params=50%" else MOST
        alone = bough.prune(
            model, inputs, budget, importance=made[row.criterion], data=BATCHES, allocation=way, refit=refit, round_to=2
        )  # fmt: skip
        assert row.error is None
        assert row.metrics == {"off": off(alone.model)}
        assert row.cost == alone.plan.cost.to_dict()
        assert row.kept["params"] == alone.plan.cost.params / alone.plan.original.params
        assert set(row.seconds) == {"score", "plan", "evaluate", *(["refit"] if refit else [])}
    assert found.dense.metrics == {"off": 0.0}
    assert set(found.dense.kept.values()) == {1.0}


def test_scored_once_and_random_under_every_seed():
    scorer, evaluate = Scorer(), Counted()
    criteria = [scorer, "l2", Shapley(loss, permutations=1)]
    found = compare(
        *same_mlp(), criteria, [HALF, MOST], evaluate, allocations=["global", "uniform"], seeds=[3, 1, 2], data=BATCHES
    )
    assert scorer.calls == 1
    assert evaluate.calls == len(found.rows) == 1 + 4 * (1 + 1 + 3 + 3)
    seeds = {name: [r.seed for r in found.rows if r.criterion == name] for name in ("l2", "random")}
    assert seeds == {"l2": [None] * 4, "random": [s for s in (3, 1, 2) for _ in range(4)]}
    assert len({tuple(r.metrics.values()) for r in found.rows if r.criterion == "random" and r.budget == "params=50%"}) > 1


def test_random_is_there_once():
    found = compare(*same_mlp(), ["random"], [HALF], off)
    assert [r.criterion for r in found.rows] == ["dense", "random"]
    assert [r.key for r in compare(*same_mlp(), Random(), HALF, off, seeds=range(2)).rows[1:]] == [
        ("Random()", "global", "params=50%", 0), ("Random()", "global", "params=50%", 1)
    ]  # fmt: skip


def test_present_rows_are_not_made_again_and_the_lists_may_grow(tmp_path):
    evaluate, scorer = Counted(), Scorer()
    first = compare(*same_mlp(), [scorer], [HALF], evaluate, folder=tmp_path)
    again = compare(*same_mlp(), [scorer], [HALF], evaluate, folder=tmp_path)
    assert evaluate.calls == 3
    assert scorer.calls == 1
    assert again.rows == first.rows
    grown = compare(*same_mlp(), ["l2", scorer], [MOST, HALF], evaluate, seeds=[0, 1], folder=tmp_path)
    assert evaluate.calls == len(grown.rows) == 1 + 2 * 4
    assert {r.key for r in first.rows} < {r.key for r in grown.rows}


@settings(max_examples=15)
@given(st.floats(0, 1))
def test_a_file_that_ends_anywhere_is_gone_on_with(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("run")
    whole = compare(*same_mlp(), ["l2", "l1"], [HALF, MOST], Counted(), folder=folder)
    written = (folder / "rows.jsonl").read_bytes()
    at = int(share * len(written))
    (folder / "rows.jsonl").write_bytes(written[:at])
    evaluate = Counted()
    again = compare(*same_mlp(), ["l2", "l1"], [HALF, MOST], evaluate, folder=folder)
    assert evaluate.calls == len(whole.rows) - written[:at].count(b"\n")
    assert results(again) == results(whole)
    third = compare(*same_mlp(), ["l2", "l1"], [HALF, MOST], evaluate, folder=folder)  # reads what the second wrote
    assert evaluate.calls == len(whole.rows) - written[:at].count(b"\n")
    assert third.rows == again.rows


def killing(model):
    """Notes each call in the file that is named, and dies in the fourth."""
    with open(os.environ["COMPARE_CALLS"], "a+", encoding="utf-8") as file:
        file.write("called\n")
        file.seek(0)
        calls = len(file.readlines())
    if calls == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return off(model)


def test_a_killed_command_goes_on(tmp_path, monkeypatch):
    words = ["compare", MODEL, "--criteria", "l2", "--budgets", "params=50%", "--budgets", "macs=80%", "--seeds", "0"]
    words += ["--seeds", "1", "--evaluate", "tests.comparing.test_compare:killing", "--json", "--out"]
    calls = tmp_path / "calls"
    monkeypatch.setenv("COMPARE_CALLS", str(calls))
    code = "import sys; from bough.cli import main; sys.argv = ['bough', *sys.argv[1:]]; main()"
    died = subprocess.run([sys.executable, "-c", code, *words, str(tmp_path / "out")], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 3
    resumed = json.loads(run(*words, str(tmp_path / "out")))["rows"]
    assert len(calls.read_text().splitlines()) == 4 + 4  # seven rows, one of them begun twice
    straight = json.loads(run(*words, str(tmp_path / "straight")))["rows"]
    assert [{**r, "seconds": 0} for r in resumed] == [{**r, "seconds": 0} for r in straight]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"round_to": 2}, "round_to is '2' here, None there"),
        ({"ignore": ["0"]}, "ignore is"),
        ({"data": BATCHES, "refit": True}, "refit is 'True' here, 'False' there"),
        ({"about": {"data": "v2"}}, "data is 'v2' here, None there"),
        ({"loss": loss}, "loss is"),
    ],
)
def test_a_folder_of_another_run(tmp_path, change, said):
    compare(*same_mlp(), ["l2"], [HALF], off, folder=tmp_path)
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ComparisonError, match=re.escape(said)):
        compare(*same_mlp(), ["l2"], [HALF], off, folder=tmp_path, **change)
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_other_weights_shapes_and_metrics_are_other_runs(tmp_path):
    model, inputs = same_mlp()
    compare(model, inputs, ["l2"], [HALF], off, folder=tmp_path)
    with pytest.raises(ComparisonError, match=r"evaluate is .*Counted"):
        compare(model, inputs, ["l2"], [HALF], Counted(), folder=tmp_path)
    with pytest.raises(ComparisonError, match=r"inputs is .*\[7, 5\]"):
        compare(model, torch.randn(7, 5), ["l2"], [HALF], off, folder=tmp_path)
    with torch.no_grad():
        model[2].bias[0] += 1e-6
    with pytest.raises(ComparisonError, match=r"weights is .*random weights"):
        compare(model, inputs, ["l2"], [HALF], off, folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"criteria": ["wanda"]}, ComparisonError, "'wanda' needs data"),
        ({"criteria": ["l2", Taylor(loss)]}, ComparisonError, r"'Taylor\(loss=loss\)' needs data"),
        ({"criteria": ["taylor"], "data": BATCHES}, ComparisonError, "'taylor' needs a loss"),
        ({"criteria": ["block_influence"], "data": BATCHES}, ComparisonError, "whole layers"),
        ({"criteria": ["taylor", "wanda"], "data": iter(BATCHES), "loss": loss}, ComparisonError, "once only"),
        ({"criteria": ["fame"]}, PlanError, "no criterion 'fame'"),
        ({"criteria": [3]}, ArgumentError, "criteria must be"),
        ({"criteria": {"mine": 3}}, ArgumentError, "criteria must be"),
        ({"criteria": {"random": "l2"}}, ComparisonError, "the name of the control"),
        ({"criteria": ["l2", "l2"]}, ComparisonError, "two criteria are called 'l2'"),
        ({"criteria": []}, ComparisonError, "at least one of criteria"),
        ({"budgets": []}, ComparisonError, "at least one of budgets"),
        ({"budgets": [bough.Budget(latency="50%")]}, BudgetError, "needs a table"),
        ({"allocations": ["fair"]}, PlanError, "'fair' is unknown"),
        ({"seeds": []}, ComparisonError, "at least one"),
        ({"seeds": [1, 1]}, ComparisonError, "each once"),
        ({"refit": True}, ComparisonError, "needs data"),
        ({"refit": True, "data": BATCHES, "on_conflict": "rebuild"}, ComparisonError, "on_conflict"),
        ({"rounding": 8}, ComparisonError, "no option 'rounding'"),
        ({"keep": 0.5}, ComparisonError, "no option 'keep'"),
        ({"ignore": ["nowhere"]}, BoughError, "nowhere"),
    ],
)
def test_what_can_not_run_is_one_error_before_anything_is(tmp_path, options, error, said):
    evaluate = Counted()
    with pytest.raises(error, match=said):
        compare(*same_mlp(), **{"criteria": ["l2"], "budgets": [HALF], "evaluate": evaluate, "folder": tmp_path, **options})
    assert evaluate.calls == 0
    assert not (tmp_path / "rows.jsonl").exists()


def broken(graph):
    raise ValueError("no scores today")


def test_rows_that_fail_are_kept_and_stop_nothing(tmp_path):
    evaluate = Counted(fails=[2])
    budgets = [HALF, bough.Budget(params=1)]
    found = compare(*same_mlp(), ["l2", broken, "l1"], budgets, evaluate, folder=tmp_path)
    errors = {r.key[::2]: r.error for r in found.rows}
    assert errors["l2", "params=50%"] == "ZeroDivisionError: no luck"
    assert errors["broken", "params=50%"] == errors["broken", "params=1"] == "ValueError: no scores today"
    assert all("can not be reached" in errors[c, "params=1"] for c in ("l2", "l1", "random"))
    assert errors["l1", "params=50%"] is errors["random", "params=50%"] is errors["dense", ""] is None
    assert found.rows[1].kept["params"] <= 0.5  # of a row that failed late, what was found till then
    text = str(found)
    assert all(words in text for words in ("failed: ZeroDivisionError: no luck", "no scores today", "can not be reached"))
    with pytest.raises(ComparisonError, match="every row failed"):
        found.best("params=1")
    calls = evaluate.calls
    assert compare(*same_mlp(), ["l2", broken, "l1"], budgets, evaluate, folder=tmp_path).rows == found.rows
    assert evaluate.calls == calls


@pytest.mark.parametrize("gives", [float("nan"), "good", None, {}, {"a": float("inf")}, torch.zeros(2, 2)])
def test_no_number_is_an_error(gives):
    with pytest.raises(ComparisonError, match="evaluate gave"):
        compare(*same_mlp(), ["l2"], [HALF], lambda model: gives)
    answers = iter([1.0])
    found = compare(*same_mlp(), ["l2"], [HALF], lambda model: next(answers, gives))
    assert all("evaluate gave" in row.error for row in found.rows[1:])


def test_other_metrics_than_the_dense_models_are_an_error():
    answers = iter([{"a": 1.0}])
    found = compare(*same_mlp(), ["l2"], [HALF], lambda model: next(answers, {"b": 1.0}))
    assert found.rows[1].error == "evaluate gave b; for the dense model it gave a"


def test_evaluate_may_train_its_model():
    model, inputs = same_mlp()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def ruin(small):
        value = off(small)
        with torch.no_grad():
            for p in small.parameters():
                p.zero_()
        return value

    expected = compare(model, inputs, ["l2"], [HALF, MOST], off)
    found = compare(model, inputs, ["l2"], [HALF, MOST], ruin)
    assert [list(r.metrics.values()) for r in found.rows] == [list(r.metrics.values()) for r in expected.rows]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Literal(torch.nn.Module):
    """Says its width in its Python."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, 8), torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.first(x).view(len(x), 2, 4).relu().flatten(1))


def test_plans_that_the_models_python_contradicts():
    found = compare(Literal(), X[:2], "l2", bough.Budget(params="60%"), lambda m: m(X[:2]).shape[1], on_conflict="rebuild")
    assert [(r.error, r.metrics) for r in found.rows] == [(None, {"metric": 2.0})] * 3
    assert found.rows[1].kept["params"] <= 0.6
    frozen = compare(Literal(), X[:2], "l2", bough.Budget(params="60%"), lambda m: 0.0)
    assert all("can not be reached" in r.error for r in frozen.rows[1:])


def rows_of(values):
    """Rows whose first metric is given by (criterion, budget, seed)."""
    kept = {"params": 0.5, "macs": 0.4, "size": 0.5}
    dense = Row("dense", metrics={"m": 9.0}, kept=dict.fromkeys(kept, 1.0))
    return (dense, *(Row(c, "global", b, s, {"m": v}, {}, kept) for (c, b, s), v in values.items()))


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["macs=1%", "macs=2%"]), st.sampled_from([0, 1, 2])),
        st.integers(-9, 9).map(float), min_size=1,
    ),
    st.booleans(),
)  # fmt: skip
def test_best_is_the_best_mean_over_seeds(values, lower):
    found = Comparison(rows_of(values), lower)
    for budget in {b for _, b, _ in values}:
        means = {}
        for (criterion, of, _), value in values.items():
            if of == budget:
                means.setdefault(criterion, []).append(value)
        means = {c: sum(v) / len(v) for c, v in means.items()}
        best = found.best(budget)
        assert best.metric("m") == pytest.approx((min if lower else max)(means.values()))
        assert means[best.criterion] == pytest.approx(best.metric("m"))
    assert sum(len(line.rows) for line in found.lines) == len(values)


def test_table_and_json():
    values = {("a", "macs=1%", None): 5.0, ("random", "macs=1%", 0): 1.0, ("random", "macs=1%", 1): 4.0}
    found = Comparison(rows_of(values))
    head, dense, first, second = str(found).splitlines()
    assert "params kept" in head
    assert dense.split()[0] == "dense"
    assert "9" in dense.split()
    assert first.split()[:3] == ["a", "global", "macs=1%"]
    assert "+2.5" in first.split()
    assert "2.5 (1 to 4)" in second
    loaded = json.loads(json.dumps(found.to_dict()))
    assert tuple(Row.of(r) for r in loaded["rows"]) == found.rows
    assert found.best(bough.Budget(macs="1%")).criterion == "a"
    with pytest.raises(ComparisonError, match="is not in this comparison, which has macs=1%"):
        found.best("macs=3%")


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    found = compare(
        *same_mlp(), ["l2"], [HALF, MOST, bough.Budget(params=1)], off, allocations=["global", "uniform"], seeds=[0, 1]
    )
    found.plot(tmp_path / "a.png")
    found.plot(tmp_path / "b.png", against="macs")
    a, b = ((tmp_path / f"{n}.png").read_bytes() for n in "ab")
    assert a[:8] == b[:8] == b"\x89PNG\r\n\x1a\n"
    assert a != b
    with pytest.raises(ComparisonError, match=r"against 'energy': the costs known are params"):
        found.plot(tmp_path / "c.png", against="energy")
    with pytest.raises(ComparisonError, match="every row failed"):
        compare(*same_mlp(), ["l2"], [bough.Budget(params=1)], off).plot(tmp_path / "c.png")


def test_plot_of_a_size_at_a_precision(tmp_path):
    pytest.importorskip("matplotlib")
    found = compare(*same_mlp(), ["l2"], [bough.Budget(size="80%", precision="int8")], off)
    assert found.rows[1].kept["stored"] <= 0.8
    assert "stored kept" in str(found)
    found.plot(tmp_path / "a.png")


def test_command(tmp_path):
    pytest.importorskip("matplotlib")
    words = ["compare", MODEL, "--criteria", "taylor", "--criteria", "wanda", "--allocations", "uniform"]
    words += [
        "--budgets",
        "params=70%,macs=70%",
        "--evaluate",
        "tests.comparing.test_compare:off",
        "--data",
        "tests.comparing.test_compare:batches",
    ]
    words += ["--lower-is-better", "--round-to", "2", "--ignore", "0", "--out", str(tmp_path)]
    data = json.loads(run(*words, "--json"))
    assert [r["criterion"] for r in data["rows"]] == ["dense", "taylor", "wanda", "random"]
    assert all(r["kept"]["params"] <= 0.7 and r["error"] is None for r in data["rows"][1:])
    assert {f.name for f in tmp_path.iterdir()} == {"run.json", "rows.jsonl", "comparison.png"}
    assert data["plot"] == str(tmp_path / "comparison.png")
    by_hand = compare(
        *same_mlp(), ["taylor", "wanda"], [bough.Budget(params="70%", macs="70%")], off, allocations=["uniform"], data=BATCHES,
        loss=loss, ignore=["0"], round_to=2,
    )  # fmt: skip
    assert [r["metrics"] for r in data["rows"]] == [r.metrics for r in by_hand.rows]
    assert "vs random" in run(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--criteria", "taylor"], "needs data"),
        (["--criteria", "taylor", "--data", "tests.comparing.test_compare:unlabelled"], "no pairs"),
        (["--budgets", "macs"], "write NAME=BOUND"),
        (["--allocations", "fair"], "unknown"),
        (["--loss", "tests.comparing.test_compare:nothing"], "no callable nothing"),
    ],
)
def test_errors_of_the_command(tmp_path, words, said):
    with pytest.raises(BoughError, match=said):
        run(
            "compare",
            MODEL,
            "--budgets",
            "macs=50%",
            "--evaluate",
            "tests.comparing.test_compare:off",
            "--out",
            str(tmp_path),
            *words,
        )


def unlabelled():
    return [x for x, _ in BATCHES]


def test_names_are_the_same_in_every_process():
    assert named(Taylor(loss, form="square")) == "Taylor(loss=loss, form='square')"
    assert named(lambda: 0).endswith("<lambda>")
    many = named(bough.allocation.Sensitivity({f"layer{i}": ((1.0, 0.0),) for i in range(50)}))
    assert re.fullmatch(r"Sensitivity\(curves=dict#[0-9a-f]{8}\)", many)
    assert "0x" not in named(Counted())


def test_the_page():
    names = pages.run("comparing.md")
    assert len(names["found"].rows) == 1 + 2 * 2 * (3 + 3)
    assert names["best"].kept("macs") <= 0.5
