"""Where results go: tried before the work is done, whole or not at all, and not over what is there."""

import subprocess
import sys
from pathlib import Path

import pytest

import bough
from bough.cli.outputs import writable
from bough.errors import CheckpointError
from tests.test_cli import MODEL, run
from tests.zoo import tasks

SEEDED = "tests.zoo.tasks:same_mlp"
TASK = "tests.zoo.tasks:five_inputs"
NO_WORK = {  # each command, up to where its result goes
    "prune": ["prune", MODEL, "--budget", "macs=40%", "--out"],
    "refit": ["refit", MODEL, "tests.zoo.tasks:unlabelled", "--checkpoint", "none", "--out"],
    "finetune": ["finetune", MODEL, TASK, "--checkpoint", "none", "--out"],
    "distill": ["distill", MODEL, TASK, "--checkpoint", "none", "--out"],
    "compare": ["compare", MODEL, "--evaluate", "tests.zoo.tasks:nothing", "--budgets", "macs=40%", "--out"],
    "search": ["search", MODEL, "--evaluate", "tests.zoo.tasks:nothing", "--out"],
    "table": ["table", MODEL, "--out"],
    "table --ask": ["table", MODEL, "--ask"],
    "demo": ["demo", "--page"],
}


def system_error(monkeypatch, number, text):
    """Every file that is opened to be written ends in an error of the system."""

    def refused(*given, **options):
        raise OSError(number, text)

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refused)


@pytest.fixture
def no_work(monkeypatch):
    for command in ("prune", "refit", "train", "compare", "search", "table", "commands"):
        monkeypatch.setattr(
            f"bough.cli.{command}.resolve", lambda *given, **options: pytest.fail("began to work"), raising=False
        )
    monkeypatch.setattr("bough.cli.demo.load_digits", lambda: pytest.fail("began to work"))


@pytest.mark.parametrize("words", NO_WORK.values(), ids=NO_WORK)
def test_what_can_not_be_written_is_told_before_the_work(words, no_work, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match="file"):
        run(*words, str(tmp_path / "file" / "below"))
    assert (tmp_path / "file").read_text() == "kept"
    system_error(monkeypatch, 28, "No space left on device")
    with pytest.raises(CheckpointError, match=r"out can not be written: No space left on device"):
        run(*words, str(tmp_path / "out"))
    system_error(monkeypatch, 13, "Permission denied")
    with pytest.raises(CheckpointError, match=r"out can not be written: Permission denied"):
        run(*words, str(tmp_path / "out"))
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_trying_leaves_nothing_behind(tmp_path):
    writable(tmp_path / "a" / "b", folder=True)
    writable(tmp_path / "file.json", folder=False)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_overwritten_on_request_alone(tmp_path):
    out, other = str(tmp_path / "out"), str(tmp_path / "other")
    run("prune", SEEDED, "--budget", "params=60%", "--out", out)
    before = (tmp_path / "out" / "plan.json").read_bytes()
    refitting = ["refit", SEEDED, "tests.zoo.tasks:unlabelled", "--checkpoint", out, "--out", out]
    training = ["finetune", SEEDED, TASK, "--checkpoint", out, "--out", out, "--epochs", "1"]
    for words in (["prune", SEEDED, "--budget", "params=40%", "--out", out], refitting, training):
        with pytest.raises(CheckpointError, match="has a checkpoint already"):
            run(*words)
    assert (tmp_path / "out" / "plan.json").read_bytes() == before
    run("prune", SEEDED, "--budget", "params=40%", "--out", out, "--overwrite")
    assert (tmp_path / "out" / "plan.json").read_bytes() != before
    run(*training[:-3], other, "--epochs", "1")
    run(*training[:-3], other, "--epochs", "1")  # the same run, taken up again


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes beyond the limit fail as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
from bough.cli import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files")
def test_a_disk_that_fills_up_is_one_line_and_leaves_no_part(tmp_path):
    """The weights, some 17 KB, do not fit."""
    out = tmp_path / "out"
    words = ["prune", "tests.test_cli_outputs:large", "--budget", "params=90%", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", FULL, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"bough: {out / 'model.safetensors'} can not be written: ")
    assert done.stderr.count("\n") == 1
    assert [f for f in out.rglob("*") if f.is_file()] == []


def large():
    import torch

    return torch.nn.Sequential(torch.nn.Linear(8, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8)), torch.randn(2, 8)


def test_what_prune_saves_is_what_load_reads(tmp_path):
    run("prune", SEEDED, "--budget", "params=60%", "--out", str(tmp_path / "deep" / "out"))
    model = bough.load(tmp_path / "deep" / "out", lambda: tasks.same_mlp()[0])
    assert model[0].out_features < 8
    assert {f.name for f in Path(tmp_path / "deep" / "out").iterdir()} == {"plan.json", "model.safetensors"}
