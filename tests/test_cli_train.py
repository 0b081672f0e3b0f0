"""`bough finetune`, `distill` and `prune --iterative`, as a user runs them."""

import json
import shutil

import pytest
import torch

import bough
from bough.errors import BoughError
from bough.quantization import load_quantized
from bough.recovery.training import read_log
from tests.test_cli import MODEL, run
from tests.zoo import small, tasks

SEEDED = "tests.zoo.tasks:same_mlp"
TASK = "tests.zoo.tasks:five_inputs"


@pytest.fixture
def pruned(tmp_path):
    run("prune", SEEDED, "--budget", "params=60%", "--out", str(tmp_path / "small"), "--json")
    return str(tmp_path / "small")


@pytest.mark.parametrize(
    "words", [["finetune", MODEL, TASK], ["distill", SEEDED, TASK, "--features", "0"]], ids=["finetune", "distill"]
)  # fmt: skip
def test_training_commands(words, pruned, tmp_path):
    pytest.importorskip("accelerate")
    out = tmp_path / "out"
    words = [*words, "--checkpoint", pruned, "--out", str(out), "--epochs", "4", "--lr", "0.02", "--batch-size", "16", "--json"]
    data = json.loads(run(*words))
    assert data["steps"] == 16
    assert data["best"] == max(e["metric"] for e in data["epochs"])
    assert {f.name for f in out.iterdir()} == {
        "best.safetensors", "curve.png", "log.jsonl", "model.safetensors", "plan.json", "state.safetensors"
    }  # fmt: skip
    assert len(read_log(out / "log.jsonl")) == 16 + 4
    before, after = (bough.load(f, lambda: small.ZOO["mlp"]()[0]) for f in (pruned, out))
    assert not all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert json.loads(run(*words))["resumed"] == 16  # it has ended: nothing is trained again


def test_quantization_aware_training(pruned, tmp_path):
    """`--qat` saves a program for `bough export --quantized`, of the pruned model or of the model itself."""
    pytest.importorskip("accelerate")
    pytest.importorskip("torchao")
    words = ["--qat", "--data", "tests.zoo.tasks:unlabelled", "--observer", "minmax", "--no-equalize", "--no-correct-bias"]
    words += ["--epochs", "2", "--lr", "0.02", "--batch-size", "16", "--json"]
    tuned, itself = tmp_path / "tuned", tmp_path / "itself"
    first = json.loads(run("finetune", SEEDED, TASK, "--checkpoint", pruned, "--out", str(tuned), *words))
    assert first["quantized"]["metric"] is not None
    assert not (tuned / "plan.json").exists()
    assert json.loads(run("finetune", SEEDED, TASK, "--checkpoint", pruned, "--out", str(tuned), *words))["resumed"] == 8
    second = json.loads(run("distill", SEEDED, TASK, "--out", str(itself), *words))
    assert second["quantized"]["size"] > first["quantized"]["size"]
    x = torch.cat(list(tasks.unlabelled()))
    assert load_quantized(tuned)(x).shape == load_quantized(itself)(x).shape


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--qat", "--checkpoint", "small"], "--qat needs --data"),
        (["--observer", "mse", "--checkpoint", "small"], "--observer is for --qat"),
        ([], "give --checkpoint"),
    ],
)
def test_options_of_quantization_that_do_not_fit(words, message, tmp_path):
    with pytest.raises(BoughError, match=message):
        run("finetune", SEEDED, TASK, "--out", str(tmp_path / "out"), *words)


def test_refit(tmp_path):
    model, out = "tests.zoo.tasks:same_mlp", str(tmp_path / "refitted")
    run("prune", model, "--budget", "params=60%", "--out", str(tmp_path / "small"), "--json")
    words = ["refit", model, "tests.zoo.tasks:unlabelled", "--checkpoint", str(tmp_path / "small"), "--out", out, "--json"]
    data = json.loads(run(*words))
    assert [x["name"] for x in data["layers"]] == ["2.weight", "4.weight"]
    x = torch.cat(list(tasks.unlabelled()))
    dense = tasks.same_mlp()[0]
    cut, refitted = (bough.load(f, lambda: tasks.same_mlp()[0]) for f in (tmp_path / "small", out))
    assert (refitted(x) - dense(x)).norm() < 0.9 * (cut(x) - dense(x)).norm()


def test_prune_by_a_criterion_on_data_and_refit(tmp_path):
    model, data = "tests.zoo.tasks:same_mlp", "tests.zoo.tasks:unlabelled"
    words = ["prune", model, "--budget", "params=60%", "--importance", "obs", "--allocation", "error", "--data", data, "--json"]
    plain = json.loads(run(*words, "--no-refit", "--out", str(tmp_path / "small")))
    refitted = json.loads(run(*words, "--refit", "--out", str(tmp_path / "refitted")))
    assert plain["groups"] == refitted["groups"]
    assert plain["refit"] is None
    assert {x["name"] for x in refitted["refit"]["layers"]} <= {"2.weight", "4.weight"}
    weights = [list(bough.load(tmp_path / f, lambda: tasks.same_mlp()[0]).parameters()) for f in ("small", "refitted")]
    assert not all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    with pytest.raises(BoughError, match="no pairs"):
        run("prune", model, "--budget", "params=60%", "--importance", "taylor", "--data", data)
    with pytest.raises(BoughError, match="followed by training"):
        run(*words, "--refit", "--task", TASK)
    with pytest.raises(BoughError, match="needs data"):
        run("prune", model, "--budget", "params=60%", "--importance", "taylor")


def test_prune_iteratively_and_resumed(tmp_path):
    pytest.importorskip("accelerate")
    words = ["prune", "tests.zoo.tasks:same_mlp", "--budget", "params=40%", "--iterative", "3", "--schedule", "cubic"]
    words += ["--task", TASK, "--epochs", "2", "--json", "--out"]
    data = json.loads(run(*words, str(tmp_path / "out")))
    assert data["after"]["params"] <= 0.4 * data["before"]["params"]
    assert data["verification"]["equal"]
    assert sorted(f.name for f in (tmp_path / "out").iterdir() if f.is_dir()) == ["step-0", "step-1", "step-2"]
    model = bough.load(tmp_path / "out", lambda: tasks.same_mlp()[0])
    assert sum(p.numel() for p in model.parameters()) == data["after"]["params"]

    shutil.copytree(tmp_path / "out", tmp_path / "killed")  # as if killed in the last step's training
    for file in ("plan.json", "model.safetensors", "step-2/state.safetensors"):
        (tmp_path / "killed" / file).unlink()
    run(*words, str(tmp_path / "killed"))
    again = bough.load(tmp_path / "killed", lambda: tasks.same_mlp()[0])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune", MODEL, "--budget", "params=60%", "--iterative", "2"], "needs --task"),
        (
            ["prune", MODEL, "--budget", "params=60%", "--task", TASK, "--schedule", "random"],
            "use one of geometric",
        ),
        (["prune", MODEL, "--budget", "params=60%", "--task", "tests.zoo.tasks:none"], "no callable none"),
    ],
)
def test_errors(words, message):
    with pytest.raises(BoughError, match=message):
        run(*words)


def test_a_run_of_another_cut_is_not_taken_up(tmp_path):
    pytest.importorskip("accelerate")
    for name, criterion in (("a", "l2"), ("b", "random")):
        words = ["--budget", "macs=50%", "--importance", criterion, "--out", str(tmp_path / name), "--json"]
        run("prune", "tests.zoo.tasks:same_mlp", *words)

    def train(name):
        words = ["finetune", "tests.zoo.tasks:same_mlp", TASK, "--checkpoint", str(tmp_path / name), "--out"]
        return run(*words, str(tmp_path / "run"), "--epochs", "1", "--json")

    train("a")
    with pytest.raises(BoughError, match="start"):
        train("b")
