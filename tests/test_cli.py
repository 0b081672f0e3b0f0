"""The command line, as a user runs it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bough.cli.commands import app

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
def test_errors_are_one_line(words, message):
    code = "import sys; from bough.cli import main; sys.argv = ['bough', *sys.argv[1:]]; main()"
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
