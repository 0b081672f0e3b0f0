"""Sharded models are refused; a model cut before can be sharded, and its checkpoints are read and written in shards."""

import json

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import bough
from bough.planning import Plan
from tests.processes.spawned import in_processes
from tests.zoo.shim import declare_torchvision_ops

declare_torchvision_ops()  # before transformers is imported, in each process

IDS = torch.arange(12)[None] % 50


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def llama():
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=50,
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def sharded():
    model = mlp()
    for part in (model[0], model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    return model


def tensor_parallel():
    return parallelize_module(mlp(), init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})


def refusals(rank, make):
    """The errors of all that would read or cut the model."""
    plain, x = mlp(), torch.zeros(2, 6)
    graph = bough.trace(plain, x)
    plan = bough.plan(graph, bough.score(graph, "l2"), bough.Budget(params="60%"))
    model, errors = make(), []
    before = {n: p.to_local().clone() for n, p in model.named_parameters()}
    for call in (
        lambda: bough.trace(model, x), lambda: bough.cut(model, plan), lambda: bough.cut_(model, plan),
        lambda: bough.mask(model, plan), lambda: bough.prune(model, x, bough.Budget(params="60%")),
        lambda: bough.refit(model, bough.cut(plain, plan), plan, [x]),
    ):  # fmt: skip
        try:
            call()
            errors.append("")
        except bough.BoughError as error:
            errors.append(str(error))
    assert all(torch.equal(p.to_local(), before[n]) for n, p in model.named_parameters())
    return errors


def written_in_shards(rank, source, folder):
    """Shard a model of `from_pretrained`, and write it from all processes."""
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(source)
    for layer in model.model.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    writer = HuggingFaceStorageWriter(folder, save_distributed=True, enable_consolidation=True)
    checkpoint.save(get_model_state_dict(model), storage_writer=writer)
    if rank == 0:
        model.config.save_pretrained(folder)


def read_in_shards(rank, folder):
    """Build the model of a folder's config, shard it, read the files into the shards, and run it."""
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(folder)).eval()
    for layer in model.model.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    state = get_model_state_dict(model)
    checkpoint.load(state, storage_reader=HuggingFaceStorageReader(folder))
    set_model_state_dict(model, state)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    with torch.no_grad():
        return model(IDS).logits.tolist()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folders, and the results of all calls in two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    llama().save_pretrained(folder / "llama")
    bough.prune_checkpoint(folder / "llama", bough.Budget(params="60%"), folder / "small")
    calls = [
        (refusals, (sharded,)), (refusals, (tensor_parallel,)), (read_in_shards, (f"{folder}/small",)),
        (written_in_shards, (f"{folder}/llama", f"{folder}/written")),
    ]  # fmt: skip
    (place := folder / "processes").mkdir()
    return folder, in_processes(2, place, calls)


def test_fsdp2_is_refused(results):
    for errors in results[1][0]:
        assert all("sharded over processes: cut the model first" in error for error in errors)


def test_tensor_parallel_is_refused(results):
    for errors in results[1][1]:
        assert all("0.weight is a DTensor" in error and "cut the model first" in error for error in errors)


def test_a_pruned_checkpoint_is_read_in_shards(results):
    import transformers

    folder, found = results
    with torch.no_grad():
        expected = transformers.LlamaForCausalLM.from_pretrained(folder / "small").eval()(IDS).logits
    for logits in found[2]:
        assert not isinstance(logits, str), logits
        torch.testing.assert_close(torch.tensor(logits), expected)


def test_a_checkpoint_written_in_shards_is_pruned(results):
    folder, found = results
    assert found[3] == (None, None)
    bough.prune_checkpoint(folder / "written", bough.Budget(params="60%"), folder / "again")
    plans = [Plan.from_dict(json.loads((folder / name / "plan.json").read_text())["plan"]) for name in ("small", "again")]
    assert plans[0].kept == plans[1].kept
