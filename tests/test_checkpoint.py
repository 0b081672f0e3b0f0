"""What is saved comes back bit for bit; what is damaged is refused with one clear error."""

import errno
import json
import os

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

import bough
from bough import recovery
from bough.errors import BoughError, CheckpointError, PlanError, WriteError
from bough.exporting import load_plan
from tests.zoo.small import ZOO


def build():
    torch.manual_seed(0)
    return ZOO["residual"]()[0].eval()


@pytest.fixture
def saved(tmp_path):
    model = build()
    result = bough.prune(model, torch.randn(2, 3, 8, 8), bough.Budget(macs="50%"))
    bough.save(result, tmp_path / "out")
    return result, tmp_path / "out"


def test_round_trip_is_bit_identical(saved):
    result, folder = saved
    again = bough.load(folder, build)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x), result.model(x))
    assert again.stem.out_channels == result.model.stem.out_channels
    for (name, a), (other, b) in zip(again.state_dict().items(), result.model.state_dict().items(), strict=True):
        assert name == other
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_ties_survive(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        model[2].bias = model[0].bias
        return model

    result = bough.prune(tied(), torch.randn(1, 4), bough.Budget(params="50%"))
    bough.save(result, tmp_path)
    again = bough.load(tmp_path, tied)
    assert again[2].bias is again[0].bias
    assert torch.equal(again[0].bias, result.model[0].bias)


@pytest.mark.parametrize("file", ["plan.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_damage_is_refused(saved, file, damage):
    _, folder = saved
    path = folder / file
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"\x80\x04garbage")
    with pytest.raises(CheckpointError, match=r"missing|damaged|truncated"):
        bough.load(folder, build)


def test_another_version_is_refused(saved):
    _, folder = saved
    meta = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**meta, "version": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        bough.load(folder, build)


def test_another_model_is_refused(saved):
    _, folder = saved
    with pytest.raises(PlanError, match="another model"):
        bough.load(folder, lambda: nn.Linear(3, 4))


def test_weights_of_another_plan_are_refused(saved, tmp_path):
    _, folder = saved
    other = bough.prune(build(), torch.randn(2, 3, 8, 8), bough.Budget(macs="30%"))
    bough.save(other, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not belong"):
        bough.load(folder, build)


# what can be saved


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(X, X[:, :4].argmax(1))
HALF = bough.Budget(params="50%")


def own_loop(model, result):
    small = result.model
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    nn.functional.cross_entropy(small(X), DATA.tensors[1]).backward()
    optimizer.step()
    return (small, result.plan)


def finetuned(model, result):
    recovery.finetune(result.model, DATA, recovery.Training(epochs=1))
    return (result.model, result.plan)


def distilled(model, result):
    recovery.distill(result.model, model, DATA, recovery.Training(epochs=1))
    return (result.model, result.plan)


def ticket(model, result):
    graph = bough.trace(model, X[:1])
    found = recovery.find_tickets(model, lambda trained, sparse: None, keep=0.5, rounds=1, graph=graph)[-1]
    return bough.cut(model, found.plan), found.plan


def zeroed(model, result):
    plan = recovery.zeros(bough.trace(model, X[:1]))
    return bough.cut(model, plan), plan


RECOVERIES = {
    "prune": lambda model, result: (result,),
    "refit": lambda model, result: (bough.refit(model, result.model, result.plan, X.split(16)),),
    "refit, its model": lambda model, result: (
        bough.refit(model, result.model, result.plan, X.split(16)).model, result.plan
    ),
    "merge": lambda model, result: (recovery.merge(bough.trace(model, X[:1]), result.plan),),
    "iterate": lambda model, result: (recovery.iterate(model, X[:1], HALF, lambda small, step: None, steps=2),),
    "finetune": finetuned,
    "distill": distilled,
    "a loop of one's own": own_loop,
    "a structured ticket": ticket,
    "what is zero": zeroed,
    "torch.compile": lambda model, result: (torch.compile(result.model), result.plan),
    "DataParallel": lambda model, result: (nn.DataParallel(result.model), result.plan),
}  # fmt: skip


@pytest.mark.parametrize("name", RECOVERIES)
def test_what_each_recovery_gives_is_saved_and_loaded(name, tmp_path):
    if name in ("finetune", "distill"):
        pytest.importorskip("accelerate")
    model = mlp()
    if name == "what is zero":
        with torch.no_grad():
            model[0].weight[:7], model[0].bias[:7], model[2].weight[:, :7] = 0, 0, 0
    given = RECOVERIES[name](model, bough.prune(model, X[:1], HALF))
    assert bough.save(*given, tmp_path) == tmp_path
    small = given[0] if len(given) == 2 else given[0].model
    again = bough.load(tmp_path, mlp)
    inner = getattr(small, "_orig_mod", small)
    inner = getattr(inner, "module", inner)
    assert all(torch.equal(a, b) for a, b in zip(inner.state_dict().values(), again.state_dict().values(), strict=True))
    plan = load_plan(tmp_path)
    assert plan == (given[1] if len(given) == 2 else given[0].plan)
    bough.save(again, plan, tmp_path, overwrite=True)  # in another process: load, train on, save again


@pytest.mark.parametrize("given", [
    ("x", "y"), (None, "y"), ("x", "y", "z"), (mlp(), "y"), (mlp(), None, "y"), (mlp(), "plan", "y"), ([], "y"), (3, 4, 5),
])  # fmt: skip
def test_a_wrong_call_is_shown_the_right_ones(given):
    with pytest.raises(CheckpointError, match=r"bough\.save\(model, plan, folder\)"):
        bough.save(*given)


@pytest.mark.parametrize("folder", [None, 3, "", [], 0.5])
def test_a_wrong_folder_is_named(folder):
    result = bough.prune(mlp(), X[:1], HALF)
    for call in (lambda: bough.save(result.model, result.plan, folder or 0), lambda: bough.load(folder, mlp)):
        with pytest.raises(BoughError, match=r"folder (is|must be)"):
            call()
    with pytest.raises(BoughError, match="build_model must be a function"):
        bough.load("x", None)
    with pytest.raises(BoughError, match="overwrite must be True or False"):
        bough.save(result, "x", overwrite="yes")


def test_a_model_that_the_plan_did_not_cut_is_not_saved(tmp_path):
    model = mlp()
    result = bough.prune(model, X[:1], HALF)
    with pytest.raises(PlanError, match="not cut by this plan"):
        bough.save(model, result.plan, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_overwritten_only_on_request(tmp_path):
    first, second = (bough.prune(mlp(), X[:1], bough.Budget(params=share)) for share in ("50%", "30%"))
    bough.save(first, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"has a checkpoint already.*overwrite=True"):
        bough.save(second, tmp_path)
    assert load_plan(tmp_path) == first.plan
    bough.save(second, tmp_path, overwrite=True)
    assert load_plan(tmp_path) == second.plan


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    first, second = (bough.prune(mlp(), X[:1], bough.Budget(params=share)) for share in ("50%", "30%"))
    bough.save(first, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(json, "dumps", full)  # as the plan is written, after the weights
    with pytest.raises(WriteError, match=r"plan.json can not be written: No space left on device$"):
        bough.save(second, tmp_path, overwrite=True)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_both_files_follow_the_umask(tmp_path):
    result = bough.prune(mlp(), X[:1], HALF)
    before = os.umask(0o027)
    try:
        bough.save(result, tmp_path / "out")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o640}


# what is damaged


def test_every_flipped_bit_is_told(tmp_path):
    """In the weights and in the plan, wherever it is: nothing loads as if it were whole."""
    bough.save(bough.prune(mlp(), X[:1], HALF), tmp_path)
    for path, step in ((tmp_path / "model.safetensors", 211), (tmp_path / "plan.json", 17)):
        good = path.read_bytes()
        for i in range(0, len(good), step):
            raw = bytearray(good)
            raw[i] ^= 0x02
            if path.suffix == ".json" and _same_json(good, raw):
                continue
            path.write_bytes(raw)
            with pytest.raises(CheckpointError, match=r"damaged|truncated"):
                bough.load(tmp_path, mlp)
        path.write_bytes(good)
    bough.load(tmp_path, mlp)


def _same_json(a, b):
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


def test_weights_of_another_run_with_the_same_plan_are_told(tmp_path):
    result = bough.prune(mlp(), X[:1], HALF)
    bough.save(result, tmp_path / "a")
    own_loop(None, result)
    bough.save(result, tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").replace(tmp_path / "a" / "model.safetensors")
    with pytest.raises(CheckpointError, match="of another checkpoint"):
        bough.load(tmp_path / "a", mlp)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("aliases", {"x": "nowhere"}, r'aliases\["x"\] is "nowhere"'),
    ("aliases", {"0.bias": "0.weight"}, r'aliases\["0.bias"\]'),
    ("aliases", {"x": 3}, r'aliases\["x"\] is 3'),
    ("tensors", {"x": 3}, r'tensors\["x"\] is 3'),
    ("tensors", {"x": [[1.5], "t"]}, r'tensors\["x"\]\[0\]\[0\] is 1.5'),
    ("training", 1, "training is 1"),
    ("extras", {"x": [1]}, r'extras\["x"\] is a list'),
    ("extras", {"x": {"tensor": "nowhere"}}, r'extras\["x"\] refers'),
    ("extras", {"x": {"dict": [[1]]}}, r'extras\["x"\]\[0\] is not a pair'),
    ("extras", {"x": {"pickle": ""}}, r'extras\["x"\] is an object of an unknown kind'),
    ("weights_sha256", None, "weights_sha256 is null"),
    ("version", 3, "version 3"),
    ("surprise", 3, "surprise is not a known field"),
    ("plan", None, "plan is not a plan"),
])  # fmt: skip
def test_a_wrong_field_of_the_checkpoint_is_named(saved, field, value, message):
    _, folder = saved
    meta = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**meta, field: value}))
    with pytest.raises(CheckpointError, match=rf"plan.json is damaged.*{message}"):
        bough.load(folder, build)


def test_checkpoints_of_the_first_version_load(saved):
    result, folder = saved
    meta = json.loads((folder / "plan.json").read_text())
    for name in ("checksum", "weights_sha256", "extras"):
        del meta[name]
    for name in ("weights", "inputs", "notes"):
        del meta["plan"][name]
    (folder / "plan.json").write_text(json.dumps({**meta, "version": 1}))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(bough.load(folder, build)(x), result.model(x))


# builders


def test_a_builder_may_return_inputs_too(tmp_path):
    result = bough.prune(mlp(), X[:1], HALF)
    bough.save(result, tmp_path)
    assert torch.equal(bough.load(tmp_path, lambda: (mlp(), X))(X), result.model(X))


@pytest.mark.parametrize("made", [None, "model", (None, None), (), (mlp(), X, X), [mlp()]])
def test_what_else_a_builder_returns_is_told(tmp_path, made):
    bough.save(bough.prune(mlp(), X[:1], HALF), tmp_path)
    with pytest.raises(CheckpointError, match="build_model returned a"):
        bough.load(tmp_path, lambda: made)


def test_a_model_without_memory_is_neither_saved_nor_filled(tmp_path):
    result = bough.prune(mlp(), X[:1], HALF)
    with pytest.raises(CheckpointError, match=r"0\.weight is on the meta device"):
        bough.save(result.model.to("meta"), result.plan, tmp_path)
    bough.save(bough.prune(mlp(), X[:1], HALF), tmp_path)
    with pytest.raises(CheckpointError, match="on the meta device"):
        bough.load(tmp_path, lambda: mlp().to("meta"))


# extra state


class Scaled(nn.Module):
    """Multiplies by numbers that are neither parameters nor buffers."""

    def __init__(self, extra):
        super().__init__()
        self.inner = nn.Linear(8, 32)
        self.extra = extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state

    def forward(self, x):
        return self.inner(x)


def scaled(extra=None):
    torch.manual_seed(0)
    return nn.Sequential(Scaled(extra), nn.ReLU(), nn.Linear(32, 4)).eval()


SHARED = torch.arange(3.0)
EXTRAS = [
    3, "text", None, {"a": [1, 2.5, {"b": (True, None)}], 7: "seven"}, torch.arange(4), {"x": SHARED, "again": SHARED}, [],
    {"nested": [torch.ones(2, dtype=torch.bfloat16), torch.zeros(0), torch.tensor(3)]},
]  # fmt: skip


@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_extra_state_comes_back(extra, tmp_path):
    result = bough.prune(scaled(extra), X[:1], HALF)
    bough.save(result, tmp_path)
    back = bough.load(tmp_path, lambda: scaled("another"))[0].extra
    assert type(back) is type(extra)
    for a, b in zip(tree_leaves(back), tree_leaves(extra), strict=True):
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b


def test_extra_state_that_needs_pickle_is_refused_by_name(tmp_path):
    result = bough.prune(scaled(), X[:1], HALF)
    for extra in (object(), {"deep": [{1, 2}]}, b"bytes", {(1, 2): 3}):
        result.model[0].extra = extra
        with pytest.raises(CheckpointError, match=r"0\._extra_state.* can not be saved without pickle"):
            bough.save(result, tmp_path)
    assert not list(tmp_path.iterdir())


class Counted(nn.Linear):
    """Keeps a number in the state dict by methods of its own, as quantized layers and others do."""

    seen = 0

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "seen"] = torch.tensor(self.seen)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        self.seen = int(state_dict[prefix + "seen"])
        super()._load_from_state_dict(
            {k: v for k, v in state_dict.items() if k != prefix + "seen"}, prefix, *rest[:2], [], [], []
        )


def test_state_that_a_module_writes_and_reads_itself_comes_back(tmp_path):
    def counted():
        torch.manual_seed(0)
        return nn.Sequential(Counted(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()

    result = bough.prune(counted(), X[:1], HALF)
    result.model[0].seen = 5
    bough.save(result, tmp_path)
    assert bough.load(tmp_path, counted)[0].seen == 5
