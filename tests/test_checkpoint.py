"""What is saved comes back bit for bit; what is damaged is refused with one clear error."""

import json

import pytest
import torch
from torch import nn

import bough
from bough.errors import CheckpointError, PlanError
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
