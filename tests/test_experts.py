"""Experts that are kept are those that the gate's kept rows drive, however tokens are dispatched; or all of them stay."""

import copy

import pytest
import torch
from torch import nn

import bough
from tests.zoo.routers import EXPERTS, ROUTERS, mixture

KEPT = ((0, 1, 2), (2, 3, 5), (1, 4))
CUT = {  # experts whose numbers stay in tensors, as indices into axes that are cut with them
    "gshard_capacity", "picked_matrices", "selected_matrices", "loop_over_stack", "two_index_capacity", "ranked_within_expert",
    "soft_slots", "corrected_bias", "noisy_threshold", "balanced_loss", "mixture_of_depths", "written_to_out",
    "clamped_in_place",
}  # fmt: skip
REASONS = {
    "bincount_list": "gets a value for each of its units, in order (tolist",
    "bincount_numpy": "gets a value for each of its units, in order (numpy",
    "numpy_array_of_counts": "gets a value for each of its units, in order (numpy",
    "loop_over_one_hot": "takes each of these units by its index (select",
    "dense_gate_columns": "takes each of these units by its index (select",
    "bincount_iterated": "unbound into single tensors",
    "split_at_ends": "split at values of a tensor",
    "grouped_by_offsets": "how many of its units there are is used as an index",
    "bucketized": "chosen by data (bucketize",
    "parity_of_index": "the numbers of its units are computed with (remainder",
}


def without(model: nn.Module, kept: tuple[int, ...]) -> nn.Module:
    """The original whose gate never chooses the experts that are not kept; knows nothing of `verify`."""
    model = copy.deepcopy(model)
    gone = torch.tensor([e for e in range(EXPERTS) if e not in kept], dtype=torch.long)
    model.gate.register_forward_hook(lambda module, given, logits: logits.index_fill(-1, gone, -1e30))
    for correction in model.buffers():
        correction[gone] = -1e30
    return model


def gate_of(graph: bough.Graph) -> tuple[bough.Group | None, str]:
    """The group of the gate's rows if it can be cut, and otherwise why not."""
    group = next((g for g in graph.groups if any((m.name, m.dim) == ("gate.weight", 0) for m in g.members)), None)
    return group, "; ".join(f.reason for f in graph.frozen if any((m.name, m.dim) == ("gate.weight", 0) for m in f.members))


def planned(graph: bough.Graph, name: str, kept: tuple[int, ...]) -> bough.Plan:
    scores = {g.name: [0.0] * g.size for g in graph.groups}
    scores[name] = [float(e in kept) for e in range(EXPERTS)]
    return bough.plan(graph, scores, keep={name: len(kept)})


@torch.no_grad()
@pytest.mark.parametrize("name", ROUTERS)
def test_kept_experts_work_as_if_the_gate_never_chose_the_others(name):
    model, x = mixture(name)
    graph = bough.trace(model, x)
    group, reason = gate_of(graph)
    cut = group is not None
    assert cut or reason
    for kept in KEPT if group is not None else ():
        plan = planned(graph, group.name, kept)
        small = bough.cut(model, plan)
        cut = small.gate.out_features == len(kept)
        expected = without(model, kept if cut else tuple(range(EXPERTS)))(x)
        torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-12)
        assert bough.verify(model, small, plan, x).equal
        assert cut or "by a literal index" in plan.frozen[group.name]
    assert cut == (name in CUT)


@pytest.mark.parametrize("name", REASONS)
def test_experts_that_stay_have_their_own_reason(name):
    model, x = mixture(name)
    group, reason = gate_of(bough.trace(model, x))
    assert group is None
    assert REASONS[name] in reason
