"""`bough sparsify`, and checkpoints of sparse models."""

import json

import pytest
import torch
from torch import nn

import bough
from bough.errors import CheckpointError, PlanError, TrainingError
from bough.sparsity import attach_masks_, attached_masks, follows_pattern
from bough.sparsity.formats import FORMATS
from tests.sparsity.nets import batches, mlp
from tests.test_cli import run
from tests.zoo.tasks import same_mlp

SEEDED, TASK = "tests.zoo.tasks:same_mlp", "tests.zoo.tasks:five_inputs"
MODEL, DATA = "tests.sparsity.test_command:build", "tests.sparsity.test_command:labelled"


def build():
    return mlp(), batches()[0][:2]


def labelled():
    return [(x, x[:, :4].argmax(1)) for x in batches()]


def uncuttable():
    torch.manual_seed(0)
    return nn.Linear(8, 4), batches()[0][:2]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_a_checkpoint_in_any_format_is_bit_equal(tmp_path, format, compress):
    sparse = bough.sparsify(*build(), 0.9)
    bough.save(sparse, tmp_path, format=format, compress=compress)
    assert attached_masks(sparse.model)  # saving has not taken the masks away
    again = bough.load(tmp_path, build)
    assert sorted(again.state_dict()) == sorted(mlp().state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), sparse.remove().parameters(), strict=True))


def test_zeros_make_the_file_smaller(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)), torch.randn(2, 64)
    sparse = bough.sparsify(model, x, 0.9)
    sizes = {}
    for format in ("dense", "bitmask"):
        bough.save(sparse, tmp_path / format, format=format)
        sizes[format] = (tmp_path / format / "model.safetensors").stat().st_size
    assert sizes["bitmask"] < 0.4 * sizes["dense"]


def test_damage_to_an_encoded_checkpoint_is_refused(tmp_path):
    bough.save(bough.sparsify(*build(), 0.9), tmp_path, format="csr", compress=True)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="damaged"):
        bough.load(tmp_path, build)
    with pytest.raises(PlanError, match="format='zip' is unknown"):
        bough.save(bough.sparsify(*build(), 0.9), tmp_path / "other", format="zip")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("words", [[], ["--data", DATA, "--method", "sparsegpt", "--damping", "0.1", "--sites", "4"]])
def test_the_command_does_what_the_function_does(tmp_path, words):
    options = {"data": labelled(), "method": "sparsegpt", "damping": 0.1, "sites": 4} if words else {}
    expected = bough.sparsify(*build(), pattern="2:4", permute=True, ignore="4", **options)
    out = str(tmp_path / "out")
    words = ["sparsify", MODEL, "--pattern", "2:4", "--permute", "--ignore", "4", *words, "--out", out, "--format", "bitmask"]
    data = json.loads(run(*words, "--json"))
    assert {k: data[k] for k in expected.to_dict()} == json.loads(json.dumps(expected.to_dict()))
    assert data["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    saved = bough.load(out, build)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), expected.remove().parameters(), strict=True))
    with pytest.raises(CheckpointError, match="overwrite"):
        run(*words)
    assert f"saved in {out}" in run(*words, "--overwrite", "--compress")


@pytest.mark.parametrize(
    "words",
    [
        ["--sparsity", "0.5", "--allocation", "erk", "--only", "0", "--only", "2"],
        ["--sparsity", "0.5", "--method", "wanda", "--allocation", "global", "--data", DATA],
        ["--sparsity", "0.5", "--method", "snip", "--data", DATA],
        ["--pattern", "4:8", "--method", "snip", "--data", DATA, "--loss", "tests.sparsity.test_command:loss"],
    ],
)
def test_methods_and_allocations(words):
    data = json.loads(run("sparsify", MODEL, *words, "--json"))
    assert data["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert data["saved"] is None


def loss(model, batch):
    return model(batch[0]).square().mean()


def test_a_pruned_checkpoint_then_a_pattern(tmp_path):
    """The plan of the cut is kept, so the result loads into the original model."""
    small, sparse = str(tmp_path / "small"), str(tmp_path / "sparse")
    run("prune", MODEL, "--budget", "params=60%", "--round-to", "4", "--out", small)
    data = json.loads(
        run("sparsify", MODEL, "--checkpoint", small, "--pattern", "2:4", "--out", sparse, "--format", "csr", "--json")
    )
    assert data["layers"]
    cut, loaded = (bough.load(folder, build) for folder in (small, sparse))
    for x in data["layers"]:
        weight = loaded.get_parameter(x["name"])
        assert weight.shape == cut.get_parameter(x["name"]).shape
        assert follows_pattern(weight, "2:4")
    rows = json.loads(run("measure", MODEL, "--checkpoint", sparse, "--repeats", "1", "--json"))
    assert rows["pruned"]["params"] == sum(p.numel() for p in cut.parameters())


def test_zeros_stay_in_training(tmp_path):
    pytest.importorskip("accelerate")
    sparse, out = str(tmp_path / "sparse"), str(tmp_path / "out")
    run("sparsify", SEEDED, "--sparsity", "0.5", "--out", sparse, "--format", "bitmask")
    words = ["--checkpoint", sparse, "--epochs", "2", "--lr", "0.02", "--batch-size", "16"]
    run("finetune", SEEDED, TASK, *words, "--keep-zeros", "--out", out)
    before, after = (bough.load(folder, lambda: same_mlp()[0]) for folder in (sparse, out))
    changed = False
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        if a.dim() > 1:
            assert (b[a == 0] == 0).all()
            changed |= not torch.equal(a, b)
    assert changed
    run("distill", SEEDED, TASK, *words, "--keep-zeros", "--out", str(tmp_path / "taught"))
    run("prune", SEEDED, "--budget", "params=60%", "--out", str(tmp_path / "dense"))
    with pytest.raises(TrainingError, match="no weight of the checkpoint has zeros"):
        run("finetune", SEEDED, TASK, "--checkpoint", str(tmp_path / "dense"), "--keep-zeros", "--out", str(tmp_path / "no"))


def test_a_model_without_groups_to_cut(tmp_path):
    run("sparsify", "tests.sparsity.test_command:uncuttable", "--sparsity", "0.5", "--out", str(tmp_path / "out"))
    assert int((bough.load(tmp_path / "out", uncuttable).weight == 0).sum()) == 16


def test_masks_are_saved_as_zeros_after_a_cut(tmp_path):
    result = bough.prune(*build(), bough.Budget(params="60%"))
    sparse = bough.sparsify(result.model, build()[1], 0.5)
    bough.save(sparse.model, result.plan, tmp_path, format="coo")
    again = bough.load(tmp_path, build)
    assert torch.equal(again(build()[1]), sparse.model(build()[1]))
    attach_masks_(again, {"0.weight": again[0].weight != 0})  # and they can be attached again


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of"),
        (["--sparsity", "0.5", "--pattern", "2:4"], "give one of"),
        (["--sparsity", "1.5"], "must be at least 0 and below 1"),
        (["--sparsity", "0.5", "--method", "wanda"], "needs data"),
        (["--sparsity", "0.5", "--method", "magic"], "method='magic' is unknown"),
        (["--sparsity", "0.5", "--permute"], "permute=True is for pattern="),
        (["--sparsity", "0.5", "--format", "csr"], "give --out"),
        (["--sparsity", "0.5", "--format", "zip", "--out", "nowhere"], "format='zip' is unknown"),
        (["--pattern", "2:4", "--allocation", "erk"], "is for sparsity="),
    ],
)
def test_options_that_mean_nothing(words, message):
    with pytest.raises(PlanError, match=message):
        run("sparsify", MODEL, *words)
