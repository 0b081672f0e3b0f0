"""REAP: the mean of gate value times norm of the expert's output, for experts in any form whose units can be removed."""

import functools

import numpy as np
import pytest
import torch

import bough
from bough.errors import PlanError
from tests.zoo.routers import EXPERTS, mixture
from tests.zoo.transformers_text import EXPERTS as SIZES
from tests.zoo.transformers_text import GROUPED, LATENT, VOCABULARY, built

OBSERVABLE = (
    "gshard_capacity", "selected_matrices", "loop_over_stack", "two_index_capacity", "ranked_within_expert", "noisy_threshold",
    "balanced_loss", "mixture_of_depths",
)  # fmt: skip
FAMILIES = {
    "qwen3_moe": {"num_experts": 4, **SIZES},
    "qwen3_moe_loop": {"num_experts": 4, "experts_implementation": "eager", **SIZES},
    "qwen3_moe_batched": {"num_experts": 4, "experts_implementation": "batched_mm", **SIZES},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, **GROUPED},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, **GROUPED},
    "deepseek_v3": LATENT,
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, **GROUPED},
}


def gate_group(graph):
    return next(g.name for g in graph.groups if any((m.name, m.dim) == ("gate.weight", 0) for m in g.members))


@torch.no_grad()
def without_each_expert(model, x):
    """Mean over the tokens that an expert changes of the norm of what it adds, by a run without its output: [experts]."""
    y, means = model(x), []
    for e in range(EXPERTS):
        held = model.down[e].clone()
        model.down[e] = 0
        added = (y - model(x)).norm(dim=-1)
        model.down[e] = held
        means.append(added[added > 1e-12].mean().nan_to_num().item())
    return means


@pytest.mark.parametrize("name", OBSERVABLE)
def test_equals_what_is_missing_without_the_expert(name):
    model, x = mixture(name)
    graph = bough.trace(model, x)
    scores = bough.score(graph, "reap", [x])[gate_group(graph)]
    np.testing.assert_allclose(scores, without_each_expert(model, x), rtol=1e-9, atol=1e-12)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["picked_matrices", "written_to_out"])
def test_experts_that_the_run_does_not_tell_apart_are_an_error(name):
    model, x = mixture(name)
    with pytest.raises(PlanError, match="does not tell the outputs of the experts of 'up/expert' apart"):
        bough.score(bough.trace(model, x), "reap", [x])


@torch.no_grad()
def by_hooks(model, batches):
    """{module: [tokens routed to each expert, sum of gate times norm]}, from the arguments that each module of experts gets."""
    sums = {}

    def add(module, args, output, name):
        hidden, chosen, weights = args
        for e in range(len(module.down_proj)):
            token, slot = torch.where(chosen == e)
            alone = module.forward(hidden[token], torch.full((len(token), 1), e), torch.ones(len(token), 1))
            norms = alone.norm(dim=-1)
            sums.setdefault(name, np.zeros((len(module.down_proj), 2)))[e] += [
                len(token),
                float((norms * weights[token, slot]).sum()),
            ]

    modules = [(n, m) for n, m in model.named_modules() if hasattr(m, "down_proj") and hasattr(m.down_proj, "shape")]
    hooks = [m.register_forward_hook(functools.partial(add, name=n)) for n, m in modules]
    for batch in batches:
        model(**batch)
    for hook in hooks:
        hook.remove()
    return sums


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_a_computation_by_hooks_on_mixtures_of_transformers(name):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = built(name.removesuffix("_loop").removesuffix("_batched"), "CausalLM", **FAMILIES[name])
    batches = [{"input_ids": torch.randint(3, VOCABULARY, (2, n))} for n in (7, 11)]
    graph = bough.trace(model, {"input_ids": torch.randint(3, VOCABULARY, (2, 9))})
    scores = bough.score(graph, bough.importance.REAP(), batches)
    expected = by_hooks(model, batches)
    assert expected
    for module, sums in expected.items():
        groups = [g for g in graph.groups if any((m.name, m.dim) == (f"{module}.down_proj", 0) for m in g.members)]
        sizes = [g.size for g in groups]
        for dim, group in enumerate(groups):  # two groups where the model's experts come in groups
            rows, norms = (s.reshape(sizes).sum(tuple(d for d in range(len(sizes)) if d != dim)) for s in sums.T)
            np.testing.assert_allclose(scores[group.name], norms / rows, rtol=1e-5)


def test_expert_that_adds_least_goes_first():
    model, x = mixture("loop_over_stack")
    graph = bough.trace(model, x)
    group, scores = gate_group(graph), bough.score(graph, "reap", [x])
    plan = bough.plan(graph, scores, keep={group: EXPERTS - 1})
    small = bough.cut(model, plan)
    assert small.gate.out_features == EXPERTS - 1
    assert int(scores[group].argmin()) not in plan.kept["gate.weight"][0]
