"""Layers as units: what passes a type through can be left out, and equals the same model with the branch zeroed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import bough
from bough.errors import PlanError
from tests.zoo.shim import declare_torchvision_ops


class Block(nn.Module):
    def __init__(self, index: int, width: int) -> None:
        super().__init__()
        self.index = index
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor, notes: dict[int, int]) -> torch.Tensor:
        notes[self.index] = x.shape[0]
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Stack(nn.Module):
    """A list of residual blocks that know their places, a lone one, and what counts them."""

    def __init__(self, n: int = 4, width: int = 8) -> None:
        super().__init__()
        self.num_layers, self.layer_types = n, [f"kind{i}" for i in range(n)]
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(Block(i, width) for i in range(n))
        self.extra = Block(7, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        notes: dict[int, int] = {}
        x = self.stem(x)
        for i in range(self.num_layers):
            assert self.layer_types[i].startswith("kind")
            x = self.blocks[i](x, notes)
        assert sorted(notes) == list(range(self.num_layers))
        return self.head(self.extra(x, {}))


def make() -> tuple[Stack, torch.Tensor]:
    torch.manual_seed(0)
    return Stack().double().eval(), torch.randn(2, 5).double()


def zeroed(model: Stack, *names: str) -> nn.Module:
    """The independent reference: the last layer of each branch is zero."""
    out = copy.deepcopy(model)
    for name in names:
        branch = out.get_submodule(name).down
        nn.init.zeros_(branch.weight)
        nn.init.zeros_(branch.bias)
    return out


def plan_without(model: nn.Module, x: torch.Tensor, *names: str, keep: float = 1.0) -> bough.Plan:
    graph = bough.trace(model, x)
    return bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=keep, drop=names)


def test_residual_blocks_are_found_with_their_lists():
    graph = bough.trace(*make())
    assert [(x.name, x.container, x.exact) for x in graph.layers] == [
        *((f"blocks.{i}", "blocks", True) for i in range(4)),
        ("extra", None, True),
    ]


@pytest.mark.parametrize("names", [("blocks.0",), ("blocks.3",), ("blocks.1", "blocks.2"), ("extra",), ("blocks.0", "extra")])
def test_leaving_layers_out_equals_zeroing_their_branches(names):
    model, x = make()
    before = copy.deepcopy(model.state_dict())
    plan = plan_without(model, x, *names)
    small = bough.cut(model, bough.Plan.from_json(plan.to_json()))
    assert torch.allclose(small(x), zeroed(model, *names)(x), rtol=0, atol=1e-12)
    assert bough.verify(model, small, plan, x).max_error < 1e-12
    assert sum(p.numel() for p in small.parameters()) == plan.cost.params < plan.original.params
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_the_model_notes_about_its_layers_follows():
    model, x = make()
    small = bough.cut(model, plan_without(model, x, "blocks.1", "blocks.2"))
    assert [b.index for b in small.blocks] == [0, 1]
    assert small.num_layers == 2
    assert small.layer_types == ["kind0", "kind3"]
    assert model.num_layers == 4
    assert len(model.blocks) == 4


def test_layers_and_widths_are_cut_together_and_saved(tmp_path):
    model, x = make()
    plan = plan_without(model, x, "blocks.2", "extra", keep=0.5)
    small = bough.cut(model, plan)
    assert small.stem.out_features == 4
    assert bough.verify(model, small, plan, x).max_error < 1e-9
    bough.save(bough.Result(small, plan, bough.verify(model, small, plan, x)), tmp_path)
    assert torch.equal(bough.load(tmp_path, lambda: Stack().double())(x), small(x))


def test_widths_beside_layers_left_out_are_those_planned_for_the_model_without_them():
    model, x = make()
    names = ("blocks.2", "blocks.3", "extra")
    shallow = bough.cut(model, plan_without(model, x, *names))
    graph, rest = bough.trace(model, x), bough.trace(shallow, x)
    budget = bough.Budget(params=rest.cost().params // 2)
    drawn = np.random.default_rng(0)
    scores = {g.name: drawn.lognormal(0, 2, g.size) for g in graph.groups}
    together = bough.plan(graph, scores, budget, allocation="greedy", drop=names)
    after = bough.plan(rest, {g.name: scores[g.name] for g in rest.groups}, budget, allocation="greedy")
    shapes = [[p.shape for p in bough.cut(m, plan).parameters()] for m, plan in ((model, together), (shallow, after))]
    assert shapes[0] == shapes[1] != [p.shape for p in shallow.parameters()]


def test_prune_leaves_layers_out_and_meets_the_rest_of_the_budget_by_widths():
    model, x = make()
    done = bough.prune(model, x, bough.Budget(params="50%"), drop=(n for n in ("blocks.0", "blocks.3")), allocation="greedy")
    assert list(done.plan.left_out) == ["blocks.0", "blocks.3"]
    assert len(done.model.blocks) == 2
    assert sum(p.numel() for p in done.model.parameters()) <= 0.5 * sum(p.numel() for p in model.parameters())
    assert done.report.equal


def test_lists_are_cut_by_scores():
    model, x = make()
    graph = bough.trace(model, x)
    scores = {**bough.score(graph, bough.importance.Magnitude()), "blocks": [3.0, 1.0, 4.0, 2.0]}
    assert list(bough.plan(graph, scores, keep={"blocks": 2}).left_out) == ["blocks.1", "blocks.3"]


def test_a_block_that_others_need_is_replaced_in_place():
    class Fixed(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(self.blocks[3](self.blocks[1](x, {}), {}))

    model = Fixed().double().eval()
    x = torch.randn(2, 5).double()
    small = bough.cut(model, plan_without(model, x, "blocks.1"))
    assert len(small.blocks) == 4
    assert torch.allclose(small(x), zeroed(model, "blocks.1")(x), rtol=0, atol=1e-12)


def test_unknown_layers_are_named():
    model, x = make()
    with pytest.raises(PlanError, match=r"'stem' is no layer that can be left out; there are: blocks\.0"):
        plan_without(model, x, "stem")


def test_a_llama_without_a_layer_generates_with_its_cache():
    declare_torchvision_ops()
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=50
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).double().eval()
    ids = torch.randint(3, 50, (1, 5))
    plan = plan_without(model, {"input_ids": ids}, "model.layers.1")
    small = bough.cut(model, plan)
    assert small.config.num_hidden_layers == 2
    assert [x.self_attn.layer_idx for x in small.model.layers] == [0, 1]
    tokens = [small.generate(ids, max_new_tokens=6, do_sample=False, use_cache=c, pad_token_id=0) for c in (True, False)]
    assert torch.equal(*tokens)
