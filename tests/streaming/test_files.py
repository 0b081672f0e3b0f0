"""Safetensors files by parts, against the safetensors package; and folders of them that are damaged."""

import json
import shutil
import sys
import types
from threading import Event

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bough
from bough.errors import BudgetError, CheckpointError, ModelReferenceError, PlanError, WriteError
from bough.importance import elementwise
from bough.storage.safetensors_file import TensorFile, header_bytes, read_header
from bough.storage.tensors import raw_bytes, taken
from bough.streaming.ahead import ahead
from tests.streaming.test_equal_to_memory import folder_of, tensors
from tests.test_cli import run

BUDGET = bough.Budget(params="60%")
TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(4, 3),
    "b": torch.arange(10).to(torch.bfloat16).view(5, 2, 1),
    "c": torch.tensor(3.0, dtype=torch.float16),
    "d": torch.tensor([True, False]),
    "e": torch.empty(0, 3),
}


def test_parts_are_those_that_the_package_gives(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    with TensorFile(path) as file, safe_open(path, "pt") as package:
        for entry in header.entries:
            whole = package.get_tensor(entry.name)
            assert torch.equal(file.rows(entry).view(entry.shape), whole)
            if entry.shape and entry.shape[0] > 2:
                assert torch.equal(file.rows(entry, 1, 3), whole[1:3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("threads", [1, 2])
def test_sums_of_rows_that_are_read_are_those_of_the_tensor(dtype, threads, tmp_path):
    tensor, path = torch.randn(1500, 700).to(dtype), tmp_path / "x.safetensors"
    save_file({"a": tensor}, path)
    reduction = elementwise(torch.square)
    step = reduction.rows(tensor.shape)
    buffers = [torch.empty(step * 700 * tensor.itemsize * blocks, dtype=torch.uint8) for blocks in (2, 2)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with TensorFile(path) as file:
            blocks = ahead(file.blocks(read_header(path).entries[0], buffers, step))
            sums = reduction.along((0, 1), (rows for block in blocks for rows in block.split(step)))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(tensor) > 3 * step
    assert all(torch.equal(sums[dim], reduction(tensor, dim)) for dim in (0, 1))


def test_an_item_is_made_while_the_one_before_it_is_used():
    second_is_made = Event()

    def items():
        yield "first"
        second_is_made.set()
        yield "second"
        raise OSError("read error")

    found = ahead(items())
    assert next(found) == "first"
    assert second_is_made.wait(timeout=60)
    assert next(found) == "second"
    with pytest.raises(OSError, match="read error"):
        next(found)


def test_the_package_reads_what_is_written_by_parts(tmp_path):
    path, codes = tmp_path / "x.safetensors", {"a": "F32", "b": "BF16", "c": "F16", "d": "BOOL", "e": "F32"}
    head = header_bytes([(n, codes[n], tuple(t.shape)) for n, t in TENSORS.items()], {"format": "pt"})
    path.write_bytes(head + b"".join(raw_bytes(t).numpy().tobytes() for t in TENSORS.values()))
    found = load_file(path)
    assert all(torch.equal(found[n], t) for n, t in TENSORS.items())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_slices_are_those_of_index_select(dtype, dim):
    tensor, units = torch.randn(4, 5, 3).to(dtype), np.array([0, 2])
    found = taken(tensor, dim, units)
    assert found.is_contiguous()
    assert torch.equal(raw_bytes(found), raw_bytes(tensor.index_select(dim, torch.from_numpy(units))))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return folder_of("llama_gqa", tmp_path_factory.mktemp("source") / "llama", torch.bfloat16, max_shard_size="8KB")


@pytest.fixture
def copy(source, tmp_path):
    return shutil.copytree(source, tmp_path / "copy")


def first_shard(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def no_shard(folder):
    first_shard(folder).unlink()


def truncated(folder):
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-10])


def no_header(folder):
    first_shard(folder).write_bytes(b"\x10\0\0\0\0\0\0\0not JSON at all!" + bytes(100))


def wrong_index(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight.twice"] = first_shard(folder).name
    path.write_text(json.dumps(index))


def no_index(folder):
    (folder / "model.safetensors.index.json").write_text("{")


def no_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()


def other_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))


def more_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))


def no_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(("damage", "message"), [
    (no_shard, r"copy lacks model-00001-of-\d+\.safetensors, which model\.safetensors\.index\.json names"),
    (truncated, r"model-00001-of-\d+\.safetensors is truncated: it has \d+ bytes, and its header says \d+"),
    (no_header, r"model-00001-of-\d+\.safetensors is damaged: its header can not be read"),
    (wrong_index, r"index\.json is wrong: model\.norm\.weight\.twice of \S+ is in the index and not in the file"),
    (no_index, r"index\.json is damaged"),
    (no_weights, r"copy has no weights as safetensors: .* save it with save_pretrained"),
    (other_config, r"does not fit config\.json: \S+ has the shape \[\d+, \d+\] there, and \[\d+, \d+\] in the model"),
    (more_layers, r"lacks weights of the model that config\.json describes: model\.layers\.2\.\S+ is in no file"),
    (no_config, r"there is no config\.json"),
])  # fmt: skip
def test_what_is_wrong_with_a_folder_is_one_sentence(damage, message, copy, tmp_path):
    damage(copy)
    with pytest.raises(CheckpointError, match=message):
        bough.prune_checkpoint(copy, BUDGET, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))  # nothing that looks like a checkpoint


def test_what_is_refused(source, tmp_path):
    with pytest.raises(PlanError, match="Wanda needs data: give data=batches"):
        bough.prune_checkpoint(source, BUDGET, tmp_path / "out", importance="wanda")
    with pytest.raises(CheckpointError, match="is the folder of the original"):
        bough.prune_checkpoint(source, BUDGET, source)
    with pytest.raises(BudgetError):
        bough.prune_checkpoint(source, bough.Budget(params=10), tmp_path / "out")
    bough.prune_checkpoint(source, BUDGET, tmp_path / "out")  # the failed call left no unfinished run
    with pytest.raises(CheckpointError, match=r"has a checkpoint already.*overwrite=True"):
        bough.prune_checkpoint(source, BUDGET, tmp_path / "out")
    before = tensors(tmp_path / "out")
    bough.prune_checkpoint(source, bough.Budget(params="80%"), tmp_path / "out", overwrite=True)
    assert any(before[n].shape != t.shape for n, t in tensors(tmp_path / "out").items())


def test_a_class_that_can_not_be_imported_is_one_sentence(source, tmp_path, monkeypatch):
    import transformers

    class Lacking(types.ModuleType):
        AutoConfig = transformers.AutoConfig

        def __getattr__(self, name):
            raise ModuleNotFoundError(f"Could not import {name}") from RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "transformers", Lacking("transformers"))
    with pytest.raises(
        ModelReferenceError, match=r"can not import LlamaForCausalLM here .RuntimeError: operator torchvision::nms"
    ):
        bough.prune_checkpoint(source, BUDGET, tmp_path / "out")


def test_a_full_disk_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda place: usage._replace(free=1000))
        with pytest.raises(WriteError, match=r"the files take [\d,]+ bytes, and 1,000 are free"):
            bough.prune_checkpoint(source, BUDGET, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
    assert bough.prune_checkpoint(source, BUDGET, tmp_path / "out").resumed


def test_tensors_that_are_no_part_of_the_model_are_told(copy, tmp_path):
    shard = first_shard(copy)
    with safe_open(shard, "pt") as file:
        kept = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 - it is no dictionary
    save_file({**kept, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)}, shard, metadata={"format": "pt"})
    path = copy / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = shard.name
    path.write_text(json.dumps(index))
    result = bough.prune_checkpoint(copy, BUDGET, tmp_path / "out")
    assert result.unknown == ("model.layers.0.self_attn.rotary_emb.inv_freq",)


def test_the_command_line(source, tmp_path):
    words = ("prune", f"hf:{source}", "--stream", "--budget", "params=60%", "--round-to", "2")
    assert "which from_pretrained and bough load" in run(*words, "--out", str(tmp_path / "out"))
    printed = json.loads(run(*words, "--out", str(tmp_path / "other"), "--json"))
    assert printed["bytes_after"] == sum(t.numel() * 2 for t in tensors(tmp_path / "other").values())
    assert printed["after"]["params"] <= 0.6 * printed["before"]["params"]
    for more, message in ((("--loss", "a:b"), "--loss needs the loaded model"), (("--weights", "x"), "--weights needs")):
        with pytest.raises(PlanError, match=message):
            run(*words, "--out", str(tmp_path / "third"), *more)
