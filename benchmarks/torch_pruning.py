"""One model through Torch-Pruning, cut to half two ways; the better counts.

*Default*: the pruner with its defaults, told which layers give the outputs. *Documented*: told the heads of each attention
too, caches turned off, and the integers that attention modules keep about their widths repaired afterwards, as its examples
do by hand.

What it removed is read off the weights (random values find their places again), and the result compared with the model in
which just that is zero, by the same `bough.verify` that judges bough.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import bough
from benchmarks import zoo
from benchmarks.coverage_bough import plain
from bough.tracing.fingerprint import fingerprint

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_KEYS = ("num_key_value_heads", "num_kv_heads")
_QUERIES = ("qkv", "q", "query", "q_proj", "q_lin", "query_proj", "to_q", "Wqkv", "qkv_proj", "query_key_value", "c_attn")
_OTHERS = ("k", "v", "key", "value", "k_proj", "v_proj", "k_lin", "v_lin", "key_proj", "value_proj", "to_k", "to_v", "kv")
_WIDTHS = ("all_head_size", "embed_dim", "hidden_size", "inner_dim", "attn_dim", "split_size", "dim", "proj_dim")
_HEAD_DIMS = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")


def outputs(model: nn.Module, graph: bough.Graph) -> list[nn.Module]:
    """The modules that give the model's outputs: they keep their widths."""
    frozen = [m.name for f in graph.frozen if "output of the model" in f.reason for m in f.members if m.dim == 0]
    return [model.get_submodule(n.rpartition(".")[0]) for n in dict.fromkeys(frozen) if "." in n]


def attentions(model: nn.Module) -> list[tuple[nn.Module, dict[nn.Module, int]]]:
    """Modules with a number of heads, and the heads of each projection in them."""
    found = []
    for module in model.modules():
        heads = next((getattr(module, a) for a in _HEADS if isinstance(getattr(module, a, None), int)), None)
        fewer = next((getattr(module, a) for a in _KEYS if isinstance(getattr(module, a, None), int)), heads)
        if heads is None:
            config = getattr(module, "config", None)
            heads = next((getattr(config, a) for a in _HEADS if isinstance(getattr(config, a, None), int)), None)
            fewer = next((getattr(config, a) for a in _KEYS if isinstance(getattr(config, a, None), int)), heads)
        linears = {n: m for n, m in module.named_children() if hasattr(m, "weight")}
        given = {m: heads for n, m in linears.items() if n in _QUERIES} | {m: fewer for n, m in linears.items() if n in _OTHERS}
        if heads and given:
            found.append((module, given))
    return found


def repair(found: list[tuple[nn.Module, dict[nn.Module, int]]], before: dict[nn.Module, int]) -> None:
    """Sets what attention modules keep about their widths to what they are now."""
    for module, given in found:
        query, heads = next(iter(given.items()))
        was, now = before[query], query.weight.shape[0]
        for names, share in ((_WIDTHS, (was, was // 3)), (_HEAD_DIMS, (was // heads, was // 3 // heads))):
            for name in names:
                value = module.__dict__.get(name)
                if value in share:
                    module.__dict__[name] = value * now // was


def kept_indices(big: Tensor, small: Tensor) -> dict[int, list[int]]:
    """{dim: indices kept} of a tensor of random values cut to another, in order.

    Raises:
        ValueError: the small one is not a slice of the big one.
    """
    values, places = big.flatten().sort()
    at = torch.searchsorted(values, small.flatten()).clamp(max=len(values) - 1)
    where = torch.unravel_index(places[at], big.shape)
    kept = {}
    for dim, size in enumerate(small.shape):
        if size < big.shape[dim]:
            lines = where[dim].reshape(small.shape).movedim(dim, 0).reshape(size, -1)
            kept[dim] = lines.mode(dim=1).values.tolist()  # a value may stand in several places
    for dim, indices in kept.items():
        big = big.index_select(dim, torch.tensor(indices))
    if not torch.equal(big, small):
        raise ValueError("its weights are not slices of the original's")
    return kept


def attempt(model: nn.Module, inputs: Any, precise: bool, with_heads: bool) -> dict[str, Any]:
    """How far one usage comes."""
    import torch_pruning as tp

    small = copy.deepcopy(model)
    out: dict[str, Any] = {"traced": False, "runs": False, "equal": False}
    graph = bough.trace(small, inputs)
    found = attentions(small) if with_heads else []
    before = {m: m.weight.shape[0] for _, given in found for m in given}
    options: dict[str, Any] = {"num_heads": {m: h for _, given in found for m, h in given.items()}} if with_heads else {}
    options["ignored_layers"] = outputs(small, graph)
    if with_heads and hasattr(small, "config"):  # its tracing stops at caches
        small.config.use_cache = False
    try:
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        pruner = tp.pruner.BasePruner(small, inputs, importance=importance, pruning_ratio=0.5, **options)
        out["traced"] = True
        pruner.step()
        repair(found, before)
    except Exception as error:
        return {**out, "cause": plain(zoo.cause(error))}
    out["params"] = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    failure = zoo.runs(small.eval(), inputs)
    if failure is not None:
        return {**out, "cause": f"after pruning: {failure}"}
    if out["params"] == 1:
        return {**out, "runs": True, "cause": "nothing was pruned"}
    try:
        return {**out, "runs": True, **compared(model, small, inputs, precise, graph)}
    except Exception as error:
        return {**out, "runs": True, "cause": plain(zoo.cause(error))}


def compared(model: nn.Module, small: nn.Module, inputs: Any, precise: bool, graph: bough.Graph) -> dict[str, Any]:
    now = dict(small.named_parameters())
    kept = {n: kept_indices(p.detach(), now[n].detach()) for n, p in model.named_parameters()}
    cost = graph.cost()
    plan = bough.Plan(
        fingerprint(model), {n: dims for n, dims in kept.items() if dims}, {}, {}, (), (), {}, cost, cost
    )  # fmt: skip
    report = bough.verify(model, small, plan, inputs, **({} if precise else {"dtype": None}))
    return {
        "equal": report.equal,
        "error": report.max_error,
        **({} if report.equal else {"cause": f"error {report.max_error:.1e}"}),
    }


def work(suite: str, name: str, seed: int) -> dict[str, Any]:
    """The result of one model, as plain data."""
    try:
        model, inputs, precise = zoo.build(suite, name, seed)
    except Exception as error:
        return {"not_built": plain(zoo.cause(error))}
    usages = {"default": attempt(model, inputs, precise, False), "documented": attempt(model, inputs, precise, True)}
    best = max(usages.values(), key=lambda u: (u["equal"], u["runs"], u["traced"]))
    return {**usages, "best": best}
