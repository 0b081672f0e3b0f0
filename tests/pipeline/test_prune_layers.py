"""Layers that a criterion orders are left out until the budget holds."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bough
from bough.errors import BudgetError, PlanError
from tests.zoo.transformers_text import TEXT, VOCABULARY, built


def next_token(output, batch):
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def llama():
    torch.manual_seed(0)
    model = built("llama", "CausalLM", **{**TEXT, "num_hidden_layers": 4})
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.weight.mul_(10.0 * (number + 1) % 7)
    return model, [{"input_ids": torch.randint(3, VOCABULARY, (4, 9))} for _ in range(2)]


@pytest.mark.parametrize("criterion", ["block_influence", bough.importance.LayerLoss(next_token)])
def test_fewest_layers_of_lowest_score_are_left_out(criterion):
    model, batches = llama()
    graph = bough.trace(model, batches[0])
    order = np.argsort(bough.score(graph, criterion, batches)["model.layers"])
    for share in ("90%", "60%"):
        result = bough.prune(model, batches[0], bough.Budget(params=share), importance=criterion, data=batches, uniform=True)
        gone = [f"model.layers.{i}" for i in order[: len(result.plan.left_out)]]
        assert set(result.plan.left_out) == set(gone)
        assert result.report.equal
        assert result.model.config.num_hidden_layers == 4 - len(gone)
        assert result.plan.cost.params <= int(share[:-1]) / 100 * graph.cost().params
        layer = sum(p.numel() for p in model.model.layers[0].parameters())
        needed = graph.cost().params * (1 - int(share[:-1]) / 100)
        assert len(gone) == math.ceil(needed / layer)
        assert result.choice.allocation == f"{len(gone)} whole layers"


def test_what_cannot_be_reached_or_does_not_fit_is_an_error():
    model, batches = llama()
    with pytest.raises(BudgetError, match="leaving out whole layers by BlockInfluence is not enough"):
        bough.prune(model, batches[0], bough.Budget(params="5%"), importance="block_influence", data=batches)
    with pytest.raises(PlanError, match="scores whole layers"):
        bough.prune(
            model, batches[0], bough.Budget(params="80%"), importance="block_influence", data=batches, allocation="uniform"
        )
    with pytest.raises(PlanError, match="needs data"):
        bough.prune(model, batches[0], bough.Budget(params="80%"), importance="block_influence")
    flat = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(PlanError, match="no layers that can be left out"):
        bough.prune(flat, torch.randn(2, 4), bough.Budget(params="80%"), importance="block_influence", data=[torch.randn(4, 4)])


COMMAND = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(*(Block() for _ in range(4))), nn.Linear(4, 3))

def pairs():
    torch.manual_seed(1)
    return [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(2)]
"""


@pytest.mark.parametrize("criterion", ["block_influence", "layer_loss"])
def test_command_line_leaves_out_layers(criterion, tmp_path, monkeypatch, capsys):
    from bough.cli import main

    (tmp_path / "blocks_of_layers.py").write_text(COMMAND)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["prune", "blocks_of_layers:net", "--input-shape", "2,4", "--budget", "params=60%", "--importance", criterion]
    monkeypatch.setattr("sys.argv", ["bough", *words, "--data", "blocks_of_layers:pairs", "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    found = json.loads(capsys.readouterr().out)
    assert len(found["left_out"]) == 2
    assert found["verification"]["equal"]
