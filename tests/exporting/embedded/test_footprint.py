"""Arena and flash that are predicted without data are those of the export; an arena is met to the byte."""

import pytest
import torch

import bough
from bough.errors import BudgetError
from bough.exporting import footprint
from bough.exporting.embedded.scratch import place_scratch
from bough.targeting import meet_arena
from tests.exporting.embedded.nets import randomized
from tests.exporting.embedded.test_flash_budget import COPYING, NETS, exported


def made(name):
    torch.manual_seed(0)
    build, shape = (NETS | COPYING)[name]
    return randomized(build()), shape


@pytest.mark.parametrize("name", NETS | COPYING)
def test_predictions_are_the_export(name):
    net, shape = made(name)
    before = torch.get_rng_state()
    found = footprint(net, ((torch.zeros(1, *shape),), {}))
    assert torch.equal(before, torch.get_rng_state())
    export = exported(net, shape)
    assert found.arena == export.arena.size
    assert found.arena_cmsis == place_scratch(export.program, export.arena, vector=False).arena
    assert export.flash <= found.flash <= 1.03 * export.flash


@pytest.mark.parametrize("name", ["depthwise", "halves"])
def test_an_arena_is_met_and_used(name):
    """Of what the closed form takes for the same bytes, more is left."""
    net, shape = made(name)
    graph = bough.trace(net, torch.randn(1, *shape))
    scores = bough.score(graph, bough.importance.Magnitude())
    whole = footprint(net, ((torch.zeros(1, *shape),), {}))
    budget = bough.Budget(peak_memory=0.7 * whole.arena, precision="int8")
    done = meet_arena(graph, scores, budget, allocation="greedy")
    assert done.original.arena == whole.arena
    assert done.footprint.arena == exported(done.model, shape).arena.size <= 0.7 * whole.arena
    assert any("arena of the C export" in note for note in done.plan.notes)
    try:
        closed = bough.plan(graph, scores, budget, allocation="greedy")
    except BudgetError:
        return  # the closed form, an upper bound, does not reach it at all
    assert done.plan.cost.macs >= closed.cost.macs


@pytest.mark.parametrize("flash", [1.0, 0.4])
def test_prune_meets_arena_and_flash_of_the_export_where_a_budget_has_both(flash):
    net, shape = made("depthwise")
    x = torch.randn(1, *shape)
    whole = footprint(net, ((x,), {}))
    budget = bough.Budget(peak_memory=0.7 * whole.arena, flash=flash * whole.flash, precision="int8")
    done = bough.prune(net, x, budget, importance="l2", allocation="greedy", refit=False)
    export = exported(done.model, shape)
    assert done.footprint.arena == export.arena.size <= 0.7 * whole.arena
    assert export.flash <= flash * whole.flash
    assert max(export.arena.size / (0.7 * whole.arena), export.flash / (flash * whole.flash)) > 0.85
    assert done.to_dict()["footprint"]["arena"] == export.arena.size


def test_a_model_without_an_export_is_pruned_by_the_closed_form_and_the_result_says_why():
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GroupNorm(1, 32), torch.nn.Linear(32, 4)).eval()
    budget = bough.Budget(peak_memory="70%", precision="int8")
    done = bough.prune(net, torch.randn(4, 8), budget, importance="l2", refit=False, round_to="cortex-m")
    assert done.footprint is None
    assert any("closed form alone" in note and "group_norm" in note for note in done.plan.notes)


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        (bough.Budget(peak_memory="50%"), {}, "needs Budget"),
        (bough.Budget(macs="50%"), {}, "needs Budget"),
        (bough.Budget(peak_memory="50%", precision="int8"), {"rounds": 0}, "rounds=0"),
        (bough.Budget(peak_memory=8, precision="int8"), {}, "peak_memory"),
    ],
)
def test_budgets_that_can_not_be_met(budget, options, message):
    net, shape = made("depthwise")
    graph = bough.trace(net, torch.randn(1, *shape))
    with pytest.raises(BudgetError, match=message):
        meet_arena(graph, bough.score(graph, bough.importance.Magnitude()), budget, **options)
