"""Experts that are cut are averaged into similar ones that stay: clusters, weights and neurons against computations by hand."""

import itertools

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage

import bough
from bough.errors import PlanError
from bough.exporting import load_plan
from bough.importance import joined
from bough.recovery import merge_experts
from tests.importance.test_reap import FAMILIES, OBSERVABLE, gate_group
from tests.test_cli import run
from tests.zoo.routers import EXPERTS, INNER, mixture
from tests.zoo.transformers_text import VOCABULARY, built


def groups_at(steps, n, clusters):
    """The partition of n points after n - clusters steps, as a set of sets."""
    parts = {i: {i} for i in range(n)}
    for absorbed, absorbing, _ in steps[: n - clusters]:
        parts[absorbing] |= parts.pop(absorbed)
    return {frozenset(p) for p in parts.values()}, set(parts)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_those_of_average_linkage(seed):
    draw = np.random.default_rng(seed)
    points, rows = draw.normal(size=(9, 4)), draw.integers(0, 50, 9).astype(float)
    steps, tree = list(joined(points, rows)), linkage(points, "average")
    np.testing.assert_allclose([d for _, _, d in steps], tree[:, 2])
    for clusters in range(1, 10):
        labels = fcluster(tree, clusters, "maxclust")
        found, representatives = groups_at(steps, 9, clusters)
        assert found == {frozenset(np.flatnonzero(labels == label)) for label in set(labels)}
        assert all(max(part, key=lambda i: rows[i]) in representatives for part in found)
        apart = groups_at(list(joined(points, rows, sorted(representatives))), 9, clusters)
        assert apart == (found, representatives)


def routed(model, x):
    """{expert: rows routed to it}, [rows, width] each, of the loop over stacked experts."""
    logits = model.gate(x)
    chosen = logits.softmax(-1).topk(model.k, -1).indices
    return {e: x[(chosen == e).any(-1)] for e in range(EXPERTS)}


def matched(target, own):
    """Neurons of `own` [neurons, weights] in the order of those of `target`: the most alike pair first, then the next."""
    similarity, order = target @ own.T, [0] * len(own)
    pairs = sorted(itertools.product(range(len(own)), repeat=2), key=lambda p: -float(similarity[p]))
    rows, columns = set(), set()
    for i, j in pairs:
        if i not in rows and j not in columns:
            order[i] = j
            rows.add(i)
            columns.add(j)
    return order


def plan_of(graph, kept):
    group = gate_group(graph)
    scores = bough.score(graph, "l2")
    scores[group] = np.array([float(e in kept) for e in range(EXPERTS)])
    return bough.plan(graph, scores, keep={group: len(kept)})


@torch.no_grad()
def test_weights_are_averages_by_hand():
    model, x = mixture("loop_over_stack")
    graph = bough.trace(model, x)
    merged = merge_experts(graph, plan_of(graph, (1, 4)), [x[:10], x[10:]])
    rows = routed(model, x)
    means = np.stack([model.run_expert(torch.cat(list(rows.values())), e).mean(0).numpy() for e in range(EXPERTS)])
    counts = np.array([float(len(rows[e])) for e in range(EXPERTS)])
    into = {absorbed: absorbing for absorbed, absorbing, _ in joined(means, counts, [1, 4])}
    for place, expert in enumerate((1, 4)):
        members = [expert, *(e for e in into if root(into, e) == expert)]
        assert merged.clusters["up/expert"][expert] == sorted(members[1:])
        neurons = {e: torch.cat([model.up[e].T, model.down[e]], 1) for e in members}  # [neurons, weights]
        average = sum(counts[e] * neurons[e][matched(neurons[expert], neurons[e])] for e in members) / counts[members].sum()
        torch.testing.assert_close(merged.model.up[place].T, average[:, : model.up.shape[1]])
        torch.testing.assert_close(merged.model.down[place], average[:, model.up.shape[1] :])
    torch.testing.assert_close(merged.model.gate.weight, model.gate.weight[[1, 4]])


def halves(graph):
    return {g.name: g.size // 2 for g in graph.groups if g.kind == "expert" and g.size > 2}


def root(into, expert):
    while expert in into:
        expert = into[expert]
    return expert


@torch.no_grad()
@pytest.mark.parametrize("name", OBSERVABLE)
def test_twins_are_merged_into_what_each_of_them_was(name):
    model, x = mixture(name)
    order = torch.randperm(INNER)
    for twin in (3, 4, 5):  # the same functions, with their neurons in another order
        model.up[twin], model.down[twin] = model.up[twin - 3][:, order], model.down[twin - 3][order]
    graph = bough.trace(model, x)
    plan = plan_of(graph, (0, 1, 2))
    torch.testing.assert_close(merge_experts(graph, plan, [x]).model(x), bough.cut(model, plan)(x), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_mixtures_of_transformers(name):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    more = {"n_routed_experts": 8} if name == "deepseek_v3" else {}
    model = built(name.removesuffix("_loop").removesuffix("_batched"), "CausalLM", **{**FAMILIES[name], **more})
    graph = bough.trace(model, {"input_ids": torch.randint(3, VOCABULARY, (2, 9))})
    batches = [{"input_ids": torch.randint(3, VOCABULARY, (2, n))} for n in (7, 11)]
    plan = bough.plan(graph, bough.score(graph, "expert_clusters", batches), keep=halves(graph), uniform=True)
    merged = merge_experts(graph, plan, batches)
    tensors, before = dict(merged.model.named_parameters()), dict(model.named_parameters())
    for parameter in (n for n in before if n.endswith("experts.down_proj")):
        module = parameter.removesuffix(".down_proj")
        ((_, clusters),) = [c for c in merged.clusters.items() if c[0].startswith(f"{module.removesuffix('.experts')}.")]
        for place, (expert, others) in enumerate(clusters.items()):
            down = tensors[parameter][place]
            alone = torch.equal(down, before[parameter][expert])
            assert alone or others
            if alone:
                assert torch.equal(tensors[f"{module}.gate_up_proj"][place], before[f"{module}.gate_up_proj"][expert])
    assert any(others for clusters in merged.clusters.values() for others in clusters.values())
    assert torch.isfinite(merged.model(**batches[0]).logits).all()
    same = [n for n in before if before[n].shape == tensors[n].shape]
    assert all(torch.equal(before[n], tensors[n]) for n in same)  # nothing but experts


def test_prune_merges_and_says_it(tmp_path):
    pytest.importorskip("transformers")
    model = built("mixtral", "CausalLM", **FAMILIES["mixtral"])
    batches = [{"input_ids": torch.randint(3, VOCABULARY, (2, 8))}]
    result = bough.prune(
        model, batches[0], bough.Budget(params="95%"), data=batches, merge_experts=True, only="*/expert", uniform=True,
    )  # fmt: skip
    assert result.choice.importance == "ExpertClusters()"
    assert result.refit is None
    assert result.merged.clusters
    assert "merged: " in str(result)
    bough.save_pretrained(result, tmp_path / "small")
    again = type(model).from_pretrained(tmp_path / "small")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in result.model.state_dict().items())


def build():
    return mixture("loop_over_stack")


def tokens():
    return [build()[1]]


def test_command_line(tmp_path):
    here, small = "tests.recovery.test_merge_experts", tmp_path / "small"
    options = ["--budget", "params=70%", "--only", "*/expert", "--importance", "reap", "--data", f"{here}:tokens"]
    assert "merged: up/expert: " in run("prune", f"{here}:build", *options, "--merge-experts", "--out", str(small))
    model, x = build()
    graph = bough.trace(model, x)
    expected = merge_experts(graph, load_plan(small), [x]).model
    loaded = bough.load(small, lambda: build()[0])
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in expected.state_dict().items())


def test_refused():
    model, x = mixture("loop_over_stack")
    graph = bough.trace(model, x)
    neurons = bough.plan(graph, bough.score(graph, "l2"), keep={g.name: 4 for g in graph.groups if g.kind == "neuron"})
    with pytest.raises(PlanError, match="cuts no experts"):
        merge_experts(graph, neurons, [x])
    budget = bough.Budget(params="60%")
    with pytest.raises(PlanError, match="merge_experts=True\\) needs data"):
        bough.prune(model, x, budget, merge_experts=True)
    with pytest.raises(PlanError, match="refit would undo the averages"):
        bough.prune(model, x, budget, merge_experts=True, data=[x], refit=True)
