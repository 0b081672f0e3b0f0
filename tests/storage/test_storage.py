"""Files are whole or not there, may be read by whoever the umask lets, and belong to one run at a time."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bough
from bough import recovery
from bough.errors import BoughError, CheckpointError, ComparisonError, TrainingError, WriteError
from bough.recovery import Training
from bough.recovery.training import read_log
from bough.storage import append_line, atomic, exclusive, read_state, write_files, write_state, write_text
from bough.storage.lock import LOCK
from tests.trained import Noisy, net


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_several_files_change_together_or_not_at_all(tmp_path):
    write_text(tmp_path / "a", "old")

    def fail(part):
        part.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WriteError) as error:
        write_files([(tmp_path / "a", lambda part: part.write_text("new")), (tmp_path / "b", fail)])
    assert str(error.value) == f"{tmp_path / 'b'} can not be written: No space left on device"
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="folder can not be written: Is a directory"):
        write_files([(tmp_path / n, lambda part: part.write_text("new")) for n in ("a", "folder")])
    (tmp_path / "folder").rmdir()
    assert (tmp_path / "a").read_text() == "old"
    write_files([(tmp_path / n, lambda part: part.write_text("new")) for n in "ab"])
    assert [(tmp_path / n).read_text() for n in names(tmp_path)] == ["new", "new"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_disk_that_fills_up_late_is_one_line_too(tmp_path, monkeypatch, failing):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_state(tmp_path / "s", {"x": torch.ones(3)})
    monkeypatch.setattr(*{"fsync": (atomic.os, "fsync"), "replace": (Path, "replace")}[failing], full)
    with pytest.raises(WriteError, match=r"s can not be written: No space left on device$"):
        write_state(tmp_path / "s", {"x": torch.zeros(3)})
    assert names(tmp_path) == ["s"]
    assert read_state(tmp_path / "s")["x"].sum() == 3


def test_what_the_system_refuses_in_the_middle_of_a_file(tmp_path):
    """A real limit on the size of files, met by safetensors' own writes and by appended lines."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from bough.errors import WriteError
from bough.storage import append_line, write_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
append_line(folder / "log", "first")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (lambda: write_state(folder / "s", {"x": torch.ones(10**6)}), lambda: append_line(folder / "log", "x" * 2000)):
    try:
        write()
    except WriteError as error:
        print(error)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] in (resource.RLIM_INFINITY, -1)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    state, log = done.stdout.splitlines()
    assert state.startswith(f"{tmp_path / 's'} can not be written: ")
    assert log.startswith(f"{tmp_path / 'log'} can not be written: ")
    assert names(tmp_path) == ["log"]
    assert (tmp_path / "log").read_text() == "first\n"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_state(tmp_path / "state", {"x": torch.ones(2)})
        write_text(tmp_path / "text", "x")
        append_line(tmp_path / "log", "x")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_state_with_a_flipped_bit_is_damaged(tmp_path):
    """Every 37th byte of the file, one after the other: no change is read as if nothing were wrong."""
    path = tmp_path / "s"
    write_state(path, {"x": torch.arange(64.0), "n": 3, "name": "abc"})
    good = path.read_bytes()
    for i in range(0, len(good), 37):
        raw = bytearray(good)
        raw[i] ^= 0x10
        path.write_bytes(raw)
        with pytest.raises(CheckpointError):
            read_state(path)
    path.write_bytes(good)
    assert read_state(path)["n"] == 3


def test_places_that_read_alike_are_kept_apart(tmp_path):
    write_state(tmp_path / "s", {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}})
    back = read_state(tmp_path / "s")
    assert (float(back["a/b"]), float(back["a"]["b"])) == (0.0, 1.0)


HOLD = """
import sys, time
from pathlib import Path
from bough.errors import TrainingError
from bough.storage import exclusive
with exclusive(Path(sys.argv[1]), TrainingError):
    print("holds", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_until_its_process_dies(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(TrainingError, match=rf"run is in use by process {holder.pid} on \S+ since \d{{4}}-"), \
                exclusive(folder, TrainingError):  # fmt: skip
            pass
    finally:
        holder.kill()  # as from outside: the process can not tidy up
        holder.wait()
        holder.stdout.close()
    assert names(folder) == [LOCK]
    (folder / ".state.safetensors.1-abc.part").write_text("half")
    with exclusive(folder, TrainingError):
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
    assert names(folder) == []


def test_within_a_process_runs_follow_each_other(tmp_path):
    class Failed(Exception):
        pass

    with pytest.raises(Failed), exclusive(tmp_path, TrainingError):
        raise Failed
    with exclusive(tmp_path, TrainingError), exclusive(tmp_path / "step-0", TrainingError):
        again = exclusive(tmp_path / ".", TrainingError)
        with pytest.raises(TrainingError, match="another run of this process"):
            again.__enter__()
    with exclusive(tmp_path, TrainingError):
        pass
    with exclusive(None, TrainingError):
        pass


def test_a_file_in_a_folder_s_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="file is a file"), exclusive(tmp_path / "file" / "run", TrainingError):
        pass
    with pytest.raises(WriteError, match="can not be written"):
        write_text(tmp_path / "none" / "x", "")
    assert issubclass(WriteError, BoughError)
    assert issubclass(WriteError, OSError)


def compared(folder):
    x = torch.randn(8, 4)
    net = torch.nn.Sequential(torch.nn.Linear(4, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))
    bough.compare(net, x[:1], ["l1"], [bough.Budget(params="50%")], lambda model: float(model(x).sum().detach()), folder=folder)


RUNS = {
    "finetune": lambda folder: recovery.finetune(net(), Noisy(), Training(folder=folder)),
    "distill": lambda folder: recovery.distill(net(), net(), Noisy(), Training(folder=folder)),
    "compare": compared,
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_refused_while_another_process_has_its_folder(name, tmp_path):
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        holder.stdout.readline()
        with pytest.raises(BoughError, match=rf"in use by process {holder.pid} on"):
            RUNS[name](tmp_path)
        assert names(tmp_path) == [LOCK]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    torch.manual_seed(0)
    RUNS[name](tmp_path)
    torch.manual_seed(0)
    RUNS[name](tmp_path)  # again, in the same process
    assert LOCK not in names(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_run_inside_a_run_needs_its_own_folder(tmp_path):
    pytest.importorskip("accelerate")
    inner = []

    def callback(line):
        with pytest.raises(TrainingError, match="another run of this process"):
            recovery.finetune(net(), Noisy(), Training(folder=tmp_path))
        inner.append(line["step"])

    recovery.finetune(net(), Noisy(), Training(epochs=1, folder=tmp_path, batch_size=25), callback=callback)
    assert inner == [1, 2]


def test_a_full_disk_ends_a_run_with_its_last_state_whole(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    whole = net()
    recovery.finetune(whole, Noisy(), Training(epochs=3, batch_size=25))
    real, saved = os.fsync, []

    def full(descriptor):
        saved.append(descriptor)
        if len(saved) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    training = Training(epochs=3, batch_size=25, save_every=1, folder=tmp_path)
    with pytest.raises(WriteError, match=r"state.safetensors can not be written: No space left on device"):
        recovery.finetune(net(), Noisy(), training)
    monkeypatch.undo()
    assert names(tmp_path) == ["log.jsonl", "state.safetensors"]
    model = net()
    assert recovery.finetune(model, Noisy(), training).resumed > 0
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True))


def test_damaged_lines_of_a_log_end_it(tmp_path):
    good = '{"step": 1, "epoch": 0, "loss": 1.0, "lr": 0.1}\n'
    for bad in (b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"{}\n", b'{"step": "1", "epoch": 0}\n', b"null\n", good.encode()[:-9]):
        (tmp_path / "log").write_bytes(good.encode() + bad + good.encode())
        assert len(read_log(tmp_path / "log")) == 1


@pytest.mark.parametrize("bad", [b"[" * 100_000, b"\xff\xfe", b"null", b'{"weights": 3}', b""])
def test_a_damaged_comparison_is_named(tmp_path, bad):
    torch.manual_seed(0)
    compared(tmp_path)
    good = (tmp_path / "run.json").read_bytes()
    (tmp_path / "run.json").write_bytes(bad)
    torch.manual_seed(0)
    with pytest.raises(ComparisonError, match=r"run\.json is damaged"):
        compared(tmp_path)
    (tmp_path / "run.json").write_bytes(good)
    (tmp_path / "rows.jsonl").write_bytes((bad or b"{}") + b"\n")
    torch.manual_seed(0)
    with pytest.raises(ComparisonError, match=r"rows\.jsonl, line 1 is damaged"):
        compared(tmp_path)


def test_a_damaged_pass_over_data_is_named(tmp_path):
    class Stopped(Exception):
        pass

    class Batches:
        """Ends before its time, as often as it is gone through."""

        def __iter__(self):
            yield from torch.randn(3, 8, 4)
            raise Stopped

    def scores(data):
        return bough.score(bough.trace(net().eval(), torch.randn(2, 4)), bough.importance.APoZ(), data)

    with pytest.raises(Stopped):
        scores(bough.importance.Data(Batches(), checkpoint=tmp_path, every=1))
    (file,) = tmp_path.iterdir()
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="safetensors is damaged"):
        scores(bough.importance.Data(Batches(), checkpoint=tmp_path, every=1))
