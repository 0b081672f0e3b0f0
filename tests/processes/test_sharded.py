"""Sharded models are refused; a model cut before can be sharded, trained, and its checkpoints read and written in shards."""

import contextlib
import json
import os
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
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
RUNS = {"finetune": (False, 0), "killed": (False, 4), "distill": (True, 0)}  # whether distilled, step at which it fails first


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


class Texts(torch.utils.data.Dataset):
    """24 sequences of 8 tokens."""

    def __init__(self):
        self.ids = torch.randint(50, (24, 8), generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


@contextmanager
def fsdp2(rank):
    """An accelerator with FSDP2. accelerate itself chooses it for GPUs alone, so its state is set here."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DataLoaderConfiguration, DistributedType

    before = dict(os.environ)
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"})
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )  # fmt: skip
    try:
        made = Accelerator(cpu=True, fsdp_plugin=plugin, dataloader_config=DataLoaderConfiguration(split_batches=True))
        made.state.fsdp_plugin = plugin
        made.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        yield made
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def trained(folder, distilled, accelerator=None, fail_at=0):
    """The losses, the number of resumed steps, and the model after training."""
    model, losses = llama(), []

    def note(line):
        losses.append(line["loss"])
        if line["step"] == fail_at:
            raise KeyboardInterrupt

    options = bough.Training(epochs=2, batch_size=4, lr=0.01, clip=1.0, folder=folder, save_every=1, progress=False)
    given = {"callback": note, "accelerator": accelerator, "evaluate": lambda m: -float(m(IDS).logits.abs().mean())}
    if distilled:
        graph = bough.trace(model, {"input_ids": IDS})
        plan = bough.plan(graph, bough.score(graph, "l2"), keep={"*.mlp.gate_proj": 20})
        model, teacher = bough.cut(model, plan), model
        done = bough.distill(model, teacher, Texts(), options, distillation=bough.recovery.Distillation(logits=0.5), **given)
    else:
        done = bough.finetune(model, Texts(), options, **given)
    return losses, done.resumed, model


def trained_in_shards(rank, folder, distilled, fail_at=0):
    """The losses, the number of resumed steps, and the whole weights, after a run that may fail at a step first."""
    if fail_at:
        with fsdp2(rank) as accelerator, contextlib.suppress(KeyboardInterrupt):
            trained(folder, distilled, accelerator, fail_at)
    with fsdp2(rank) as accelerator:
        losses, resumed, model = trained(folder, distilled, accelerator)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return losses, resumed, {n: t.tolist() for n, t in state.items()}  # in process 0 alone


def refused_in_shards(rank):
    """The error of an optimizer with a state of whole parameters."""
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters())
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    with fsdp2(rank) as accelerator:
        bough.finetune(model, Texts(), optimizer=optimizer, accelerator=accelerator)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folders, and the results of all calls in two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    llama().save_pretrained(folder / "llama")
    bough.prune_checkpoint(folder / "llama", bough.Budget(params="60%"), folder / "small")
    calls = [
        (refusals, (sharded,)), (refusals, (tensor_parallel,)), (read_in_shards, (f"{folder}/small",)),
        (written_in_shards, (f"{folder}/llama", f"{folder}/written")),
        *((trained_in_shards, (f"{folder}/{name}", distilled, fail_at)) for name, (distilled, fail_at) in RUNS.items()),
        (refused_in_shards, ()),
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


@pytest.mark.parametrize("name", ["finetune", "distill"])
def test_training_under_fsdp2_equals_one_process(name, results, tmp_path):
    _, found = results
    (losses, _, weights), other = found[4 + [*RUNS].index(name)]
    assert losses == other[0]
    expected, _, model = trained(tmp_path, RUNS[name][0])
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert weights.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(torch.tensor(weights[key]), value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_a_sharded_run_that_was_killed_continues_from_its_shards(results):
    folder, found = results
    whole, continued = found[4][0], found[5][0]
    assert continued[1] == RUNS["killed"][1]
    assert continued[0] == whole[0][continued[1] :]
    assert continued[2] == whole[2]
    names = sorted(p.name for p in (folder / "killed").iterdir() if p.is_dir())
    assert [n.rpartition(".")[0] for n in names] == ["best.safetensors", "state.safetensors"]  # the ones before are deleted
    assert all((folder / "killed" / n / ".metadata").is_file() for n in names)


def test_what_needs_whole_parameters_is_refused(results):
    assert all("an optimizer that has taken steps needs whole ones" in error for error in results[1][7])
