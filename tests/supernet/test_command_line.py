"""`bough supernet profile | train | extract`, as a user runs them."""

import json

import pytest
import torch

import bough
from bough.errors import BoughError, BudgetError, PlanError
from tests.supernet.models import dataset, inputs, residual
from tests.test_cli import run

MODEL = "tests.supernet.test_command_line:build"


def build():
    return residual(), inputs()


def task():
    return dataset(), torch.utils.data.DataLoader(dataset(), 32)


def unlabelled():
    return [inputs(64)]


def test_profile():
    words = [
        "supernet",
        "profile",
        MODEL,
        "--depth",
        "all",
        "--minimum",
        "stem=0.5",
        "--minimum",
        "0.25",
        "--budget",
        "macs=1%",
    ]
    data = json.loads(run(*words, "--budget", "params=90%,macs=95%", "--json"))
    net = bough.supernet(*build(), depth=True)
    assert data["subnets"]["smallest"]["cost"] == net.costs([net.smallest])[0].to_dict()
    assert [b["met"] for b in data["budgets"]] == [False, True]
    assert data["elastic"]["stem"] == [6, 5, 4, 3, 2]
    assert data["depths"] == [["blocks.2", "blocks.1"]]
    text = run(*words)
    assert "elastic: blocks.0.up: 2 to 8 units, 7 widths" in text
    assert "macs=1%: no subnet meets it" in text
    assert "elastic depth, left out in this order: blocks.2, blocks.1" in text


def test_train_extract_and_load(tmp_path):
    pytest.importorskip("accelerate")
    net, out = tmp_path / "net", tmp_path / "small"
    words = ["supernet", "train", MODEL, "tests.supernet.test_command_line:task", "--depth", "all", "--epochs", "2"]
    words += ["--budget", "macs=50%", "--random", "1", "--data", "tests.supernet.test_command_line:unlabelled", "--json"]
    data = json.loads(run(*words, "--out", str(net)))
    assert data["steps"] == 6
    assert {f.name for f in net.iterdir()} >= {"supernet.safetensors", "state.safetensors", "log.jsonl", "curve.png"}
    assert json.loads(run(*words, "--out", str(net)))["resumed"] == 6

    words = ["supernet", "extract", MODEL, "--checkpoint", str(net), "--json"]
    found = json.loads(run(*words, "--budget", "macs=50%", "--out", str(out)))
    assert found["cost"]["macs"] <= 0.5 * found["original"]["macs"]
    small = bough.load(out, residual)
    again = bough.Supernet.load(net, build)
    torch.testing.assert_close(small(inputs()), again.extract(bough.Budget(macs="50%")).model(inputs()), rtol=0, atol=0)

    again.table({"phone": bough.Budget(params="60%")}).save(tmp_path / "table.json")
    (tmp_path / "subnet.json").write_text(json.dumps(again.smallest.to_dict()))
    row = json.loads(run(*words, "--subnet", str(tmp_path / "table.json"), "--row", "phone"))
    assert row["cost"]["params"] <= 0.6 * row["original"]["params"]
    assert json.loads(run(*words, "--subnet", str(tmp_path / "subnet.json")))["counts"] == again.smallest.counts
    for wrong in (["--subnet", str(tmp_path / "table.json")], ["--subnet", str(tmp_path / "none.json")], []):
        with pytest.raises(BoughError):
            run(*words, *wrong)
    with pytest.raises(PlanError, match="has no row 'phon'"):
        run(*words, "--subnet", str(tmp_path / "table.json"), "--row", "phon")


def test_a_budget_that_no_subnet_meets_ends_training_before_it_begins(tmp_path):
    words = ["supernet", "train", MODEL, "tests.supernet.test_command_line:task", "--out", str(tmp_path / "net")]
    with pytest.raises(BudgetError, match="macs=1%: no subnet meets it"):
        run(*words, "--budget", "macs=1%")
    assert not (tmp_path / "net" / "log.jsonl").exists()


def test_subnets_of_budgets_and_a_teacher(tmp_path):
    """What the command line trains is what the API does by the same words."""
    pytest.importorskip("accelerate")
    words = ["supernet", "train", MODEL, "tests.supernet.test_command_line:task", "--epochs", "1", "--json"]
    given = ["--only-budgets", "--budget", "macs=50%", "--budget", "macs=75%", "--allocation", "uniform"]
    given += ["--data", "tests.supernet.test_command_line:unlabelled", "--teacher"]
    for teacher in ("original", MODEL):
        run(*words, *given, teacher, "--out", str(tmp_path / teacher))
    trained = bough.Supernet.load(tmp_path / "original", build)
    (model, example), (train, _) = build(), task()
    net = bough.supernet(model, example)
    subnets = [net.within(bough.Budget(macs=share), allocation="uniform") for share in ("50%", "75%")]
    net.fit(train, bough.Training(epochs=1), subnets=subnets, teacher=model)
    for other in (trained, bough.Supernet.load(tmp_path / MODEL, build)):
        for a, b in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(PlanError, match="--only-budgets trains the subnets of --budget: give at least one"):
        run(*words, "--only-budgets", "--out", str(tmp_path / "none"))
    with pytest.raises(PlanError, match="--allocation divides the budgets of --only-budgets"):
        run(*words, "--allocation", "uniform", "--out", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
