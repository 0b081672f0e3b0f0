"""A run that ends anywhere is continued by the same call, and its files are those of a run that did not end early."""

import os
from pathlib import Path

import pytest
import torch

import bough
from bough.errors import CheckpointError
from bough.streaming import run_folder, weights, writing
from tests.streaming.test_equal_to_memory import folder_of

BUDGET = bough.Budget(params="60%")


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing catches it."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = folder_of("llama_gqa", tmp_path_factory.mktemp("source") / "llama", torch.bfloat16, max_shard_size="8KB")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    bough.prune_checkpoint(source, BUDGET, out)
    return content(out)


def ending(monkeypatch, holder, name, number):
    """Have the call `number` of a function end the process."""
    real, calls = getattr(holder, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(holder, name, counted)
    return calls


PLACES = [  # each a step of a run
    (weights.ReductionLog, "append", 5),
    (run_folder.RunFolder, "keep_plan", 1),
    (run_folder, "write_cut_file", 2),
    (writing, "cut_rows", 9),
    (run_folder.RunFolder, "finish", 1),
    (run_folder.os, "replace", 3),  # of the shards as they are made
    (run_folder, "forget_pretrained", 1),
    (run_folder.shutil, "rmtree", 1),
]


@pytest.mark.parametrize(("holder", "name", "number"), PLACES, ids=[n for _, n, _ in PLACES])
def test_a_run_that_ends_early_is_continued(holder, name, number, source, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        ending(patched, holder, name, number)
        with pytest.raises(Killed):
            bough.prune_checkpoint(source, BUDGET, out)
    if name != "rmtree":
        assert not (out / "config.json").exists()  # it does not look whole
    assert bough.prune_checkpoint(source, BUDGET, out).resumed
    assert content(out) == whole


def test_a_run_that_ends_while_files_are_put_in_place(source, whole, tmp_path, monkeypatch):
    out, real = tmp_path / "out", os.replace
    for placed in (1, 2, 3):  # one more at each attempt
        moved = []

        def replace(origin, target, moved=moved):
            if Path(target).parent == out and moved:
                raise Killed
            moved.extend([target] if Path(target).parent == out else [])
            return real(origin, target)

        with monkeypatch.context() as patched:
            patched.setattr(run_folder.os, "replace", replace)
            with pytest.raises(Killed):
                bough.prune_checkpoint(source, BUDGET, out)
        assert sum(p.suffix == ".safetensors" for p in out.iterdir()) == placed
        assert not (out / "config.json").exists()
    bough.prune_checkpoint(source, BUDGET, out)
    assert content(out) == whole


def test_scores_are_read_from_the_log_and_not_from_the_files(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        ending(patched, run_folder.RunFolder, "keep_plan", 1)
        with pytest.raises(Killed):
            bough.prune_checkpoint(source, BUDGET, out)
    with (out / ".unfinished" / "reductions.log").open("ab") as log:
        log.write(b'["half a record", 5')
    with monkeypatch.context() as patched:
        calls = ending(patched, weights.StreamedWeights, "tensor", 1)
        bough.prune_checkpoint(source, BUDGET, out)
        assert calls == [0]


def test_an_unfinished_run_of_other_arguments_is_not_continued(source, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        ending(patched, run_folder.RunFolder, "finish", 1)
        with pytest.raises(Killed):
            bough.prune_checkpoint(source, bough.Budget(params="80%"), out)
    with pytest.raises(CheckpointError, match="unfinished run with other arguments"):
        bough.prune_checkpoint(source, BUDGET, out)
    assert not bough.prune_checkpoint(source, BUDGET, out, overwrite=True).resumed
    assert content(out) == whole


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_without_a_plan_blocks_no_other_call(error, source, whole, tmp_path):
    def failing(graph):
        graph.weights.reduce("model.embed_tokens.weight", (0,), lambda tensor, dim: tensor.sum(1))
        raise error

    out = tmp_path / "out"
    for _ in range(2):  # the first is continued
        with pytest.raises(error):
            bough.prune_checkpoint(source, BUDGET, out, importance=failing)
    assert (out / ".unfinished" / "reductions.log").stat().st_size
    assert not bough.prune_checkpoint(source, BUDGET, out).resumed
    assert content(out) == whole


def test_the_original_is_only_read(source, tmp_path):
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in source.iterdir()}
    bough.prune_checkpoint(source, BUDGET, tmp_path / "out")
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in source.iterdir()} == before
