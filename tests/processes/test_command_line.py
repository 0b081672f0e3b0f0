"""`bough prune` and `bough refit` under torchrun write what one process writes."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from bough.cli.commands import app
from tests.processes.spawned import ROOT

PRUNE = (
    "prune", "tests.processes.tasks:model", "--budget", "params=60%", "--data", "tests.processes.tasks:batches", "--importance",
    "wanda", "--allocation", "global",
)  # fmt: skip
LAUNCHER = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def launched(*words):
    """The command in two processes."""
    command = [sys.executable, "-m", *LAUNCHER, "bough", *map(str, words), "--distributed"]
    return subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600)


def run(*words):
    """The command in this process."""
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def test_prune(folder):
    one, two = run(*PRUNE, "--out", folder / "one"), launched(*PRUNE, "--out", folder / "two")
    assert (one.exit_code, two.returncode) == (0, 0), two.stderr
    plans = [json.loads((folder / name / "plan.json").read_text()) for name in ("one", "two")]
    assert plans[0]["plan"] == plans[1]["plan"]
    assert two.stdout.count("saved in") == 1
    weights = [load_file(next((folder / name).glob("*.safetensors"))) for name in ("one", "two")]
    assert all(w.allclose(weights[1][n], rtol=1e-5, atol=1e-6) for n, w in weights[0].items())


def test_refit(folder):
    words = ("refit", "tests.processes.tasks:model", "tests.processes.tasks:batches", "--checkpoint", folder / "one")
    one, two = run(*words, "--out", folder / "one-refitted"), launched(*words, "--out", folder / "two-refitted")
    assert (one.exit_code, two.returncode) == (0, 0), two.stderr
    weights = [load_file(next((folder / f"{name}-refitted").glob("*.safetensors"))) for name in ("one", "two")]
    assert all(w.allclose(weights[1][n], rtol=1e-5, atol=1e-6) for n, w in weights[0].items())


def test_several_processes_without_the_flag(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    found = run(*PRUNE, "--out", folder / "three")
    assert found.exit_code == 1
    assert "2 processes were started, and each would do all the work and write --out: give --distributed" in str(
        found.exception
    )
    assert not (folder / "three").exists()


def test_the_flag_without_several_processes(folder):
    found = run(*PRUNE, "--distributed", "--out", folder / "three")
    assert found.exit_code == 1
    assert "--distributed joins the processes of a launcher: torchrun --nproc-per-node 2 -m bough" in str(found.exception)
