"""The command line, as a user runs it."""

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

import bough
from bough.cli import demo, main
from bough.cli.commands import app
from bough.errors import BudgetError, CheckpointError, PlanError
from bough.latency import LatencyTable, required_points
from tests.test_layers import Stack
from tests.test_rebuild import LiteralView
from tests.zoo.small import mlp

MODEL = "tests.zoo.small:mlp"


def run(*words):
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_inspect():
    assert "neuron" in run("inspect", MODEL)
    data = json.loads(run("inspect", MODEL, "--json"))
    assert {g["kind"] for g in data["groups"]} == {"neuron"}
    assert data["cost"]["params"] == 5 * 8 + 8 + 8 * 6 + 6 + 6 * 3 + 3


def test_prune_then_measure(tmp_path):
    out = str(tmp_path / "out")
    data = json.loads(run("prune", MODEL, "--budget", "params=60%", "--out", out, "--json"))
    assert data["after"]["params"] <= 0.6 * data["before"]["params"]
    assert data["verification"]["equal"]
    rows = json.loads(run("measure", MODEL, "--checkpoint", out, "--repeats", "3", "--json"))
    assert rows["pruned"]["params"] == data["after"]["params"]
    assert rows["pruned"]["latency"]["repeats"] == 3


def test_prune_to_a_latency_and_a_size_at_a_precision(tmp_path):
    graph = bough.trace(*mlp())
    points = {}
    for key, widths in required_points(graph):
        points.setdefault(key, {})[widths] = 1e-6 * sum(widths)
    LatencyTable("a chip", "its compiler", 8, 0.0, 0.0, points).save(tmp_path / "table.json")
    words = ["--budget", "latency=80%", "--budget", "size=80%", "--budget", "precision=int8", "--allocation", "greedy"]
    data = json.loads(run("prune", MODEL, *words, "--table", str(tmp_path / "table.json"), "--json"))
    assert data["after"]["latency"] <= 0.8 * data["before"]["latency"]
    assert data["after"]["stored"] <= 0.8 * data["before"]["stored"]
    assert any("a chip" in note for note in data["notes"])
    assert "us" in run("prune", MODEL, *words, "--table", str(tmp_path / "table.json"))


def test_a_table_measured_here_then_a_plan_by_it(tmp_path):
    path = str(tmp_path / "table.json")
    data = json.loads(run("table", MODEL, "--out", path, "--seconds", "0", "--correct", "2", "--json"))
    assert data["points"] == len(list(required_points(bough.trace(*mlp()))))
    assert LatencyTable.load(path).seconds(bough.trace(*mlp()))[0] == pytest.approx(data["model_seconds"])
    assert "saved in" in run("table", MODEL, "--out", path, "--seconds", "0")


def test_a_table_asked_for_and_answered_elsewhere(tmp_path):
    asked, answered, path = (str(tmp_path / name) for name in ("asked.csv", "answered.csv", "table.json"))
    assert "asked.csv" in run("table", MODEL, "--quantum", "2", "--ask", asked)
    assert not (tmp_path / "table.json").exists()
    lines = (tmp_path / "asked.csv").read_text().splitlines()
    (tmp_path / "answered.csv").write_text("\n".join([lines[0], *(f"{line}1e-6" for line in lines[1:])]))
    assert "a chip" in run("table", MODEL, "--out", path, "--quantum", "2", "--answers", answered, "--device", "a chip")
    assert LatencyTable.load(path).seconds(bough.trace(*mlp()))[0] == pytest.approx(5e-6)  # three linear ops, two ReLUs
    words = ["prune", MODEL, "--budget", "latency=100%", "--table", path]
    assert "predicted from a table of a chip" in run(*words)
    (tmp_path / "answered.csv").write_text("\n".join(lines))
    with pytest.raises(PlanError, match="line 2 of the CSV can not be read"):
        run("table", MODEL, "--out", path, "--answers", answered)
    with pytest.raises(PlanError, match="leave one of them out"):
        run("table", MODEL, "--out", path, "--answers", answered, "--correct", "2")
    for words in (["--out", path, "--ask", asked], ["--answers", answered, "--ask", asked], []):
        with pytest.raises(PlanError, match="--ask FILE alone"):
            run("table", MODEL, *words)


def stack():
    return Stack(), torch.randn(2, 5)


def grouped():
    layers = [torch.nn.Conv1d(3, 4, 1), torch.nn.Conv1d(4, 12, 1, groups=2), torch.nn.ReLU(), torch.nn.Conv1d(12, 2, 1)]
    return torch.nn.Sequential(*layers), torch.randn(1, 3, 5)


def test_prune_takes_what_plan_takes():
    """Layers, shares of a group, widths alike in repeated layers, units that differ: each of them is seen in the plan."""
    words = ["prune", "tests.test_cli:stack", "--budget", "params=60%", "--json"]
    data = json.loads(run(*words, "--drop", "blocks.1", "--drop", "blocks.2"))
    assert data["left_out"] == ["blocks.1", "blocks.2"]
    assert data["verification"]["equal"]
    data = json.loads(run(*words, "--uniform"))
    inner = [kept for name, kept in data["groups"].items() if name.startswith("blocks")]
    assert len(inner) > 1
    assert len(set(map(tuple, inner))) == 1
    words = ["prune", MODEL, "--budget", "params=60%", "--json"]
    for name in ("0", "2"):
        groups = json.loads(run(*words, "--minimum", "1", "--minimum", f"{name}=0.8"))["groups"]
        assert [n for n, (kept, size) in groups.items() if kept >= 0.8 * size] == [name]
    words = ["prune", "tests.test_cli:grouped", "--minimum", "0=2", "--ragged"]
    data = json.loads(run(*words, "--budget", "macs=60%", "--json"))
    assert data["ragged"] == {"1": "0"}
    assert data["verification"]["equal"]
    assert "not ragged: 0#2: 1.weight has it not behind 0" in run(*words, "--budget", "macs=75%", "--minimum", "1=6")
    assert "left out: blocks.3" in run("prune", "tests.test_cli:stack", "--budget", "params=80%", "--drop", "blocks.3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minimum", "0=many"], "write GROUP=N"),
        (["--minimum", "zero=2"], "which is no group; there are: 0, 2"),
        (["--drop", "0"], "'0' is no layer that can be left out; there are: none"),
        (["--drop", "0", "--iterative", "2", "--task", "tests.test_cli:stack"], "a layer can be left out once"),
    ],
)
def test_options_of_prune_that_mean_nothing(words, message):
    with pytest.raises(PlanError, match=message):
        run("prune", MODEL, "--budget", "params=60%", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "nonsense"], "no model reference"),
        (["inspect", "tests.zoo.small:nothing"], "no callable nothing"),
        (["inspect", "nowhere:f"], "can not be imported"),
        (["prune", MODEL, "--budget", "fame=1"], "write NAME=BOUND"),
        (["prune", MODEL, "--budget", "params=1"], "best reachable"),
    ],
)
def test_errors_are_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bough", *words])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert message in said
    assert "Traceback" not in said


def test_one_bound_for_each_cost():
    with pytest.raises(BudgetError, match="twice"):
        run("prune", "tests.zoo.tasks:same_mlp", "--budget", "macs=40%", "--budget", "macs=90%", "--json")
    both = json.loads(run("prune", "tests.zoo.tasks:same_mlp", "--budget", "macs=60%,params=70%", "--json"))
    apart = json.loads(run("prune", "tests.zoo.tasks:same_mlp", "--budget", "macs=60%", "--budget", "params=70%", "--json"))
    assert both["groups"] == apart["groups"]


def test_where_the_result_goes_is_checked_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(bough, "prune", lambda *given, **options: pytest.fail("was pruned first"))
    with pytest.raises(CheckpointError, match="can not be a folder"):
        run("prune", MODEL, "--budget", "macs=40%", "--out", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="no folder"):
        run("table", MODEL, "--out", str(tmp_path / "none" / "table.json"))
    assert (tmp_path / "file").read_text() == "kept"


def test_options_left_out_are_left_to_the_api(monkeypatch):
    """Defaults are written once, in `bough.prune`."""
    seen, made = {}, bough.prune

    def prune(*given, **options):
        seen.update(options)
        return made(*given)

    monkeypatch.setattr(bough, "prune", prune)
    run("prune", MODEL, "--budget", "params=60%")
    assert seen == {}
    run("prune", MODEL, "--budget", "params=60%", "--round-to", "neon", "--no-uniform", "--on-conflict", "raise")
    assert seen == {"round_to": "neon", "uniform": False, "on_conflict": "raise"}
    run("prune", MODEL, "--budget", "params=60%", "--round-to", "2")
    assert seen["round_to"] == 2


def test_the_demo_words_gains_and_losses(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    accuracy = iter([98.0, 98.44, 98.0, 97.0])
    monkeypatch.setattr(demo, "fit", lambda *given: None)
    monkeypatch.setattr(demo, "accuracy", lambda *given: 98.0)
    made = demo.once

    def once(seed, data):
        row = made(seed, data)
        row["before"]["accuracy"], row["after"]["accuracy"] = next(accuracy), next(accuracy)
        return row

    monkeypatch.setattr(demo, "once", once)
    page = tmp_path / "page.html"
    printed = run("demo", "--seeds", "2", "--page", str(page))
    assert "Accuracy: 0.44 points gained, 1.00 points lost." in printed
    assert "0.44 points gained" in page.read_text()


def literal_view():
    return LiteralView(), torch.randn(2, 5)


def test_a_rebuilt_model_is_saved_and_read(tmp_path):
    """The model's Python holds the width as a literal, so the plan is carried out by `rebuild`, when it is loaded, too."""
    words, out = ["tests.test_cli:literal_view", "--json"], str(tmp_path / "out")
    data = json.loads(run("prune", *words, "--budget", "params=60%", "--on-conflict", "rebuild", "--out", out))
    assert data["verification"]["equal"]
    rows = json.loads(run("measure", *words, "--checkpoint", out, "--repeats", "1"))
    assert rows["pruned"]["params"] == data["after"]["params"] < rows["model"]["params"]
