"""Torch-Pruning told to cut a model to a share of its MACs, by its own pruners and criteria."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import bough

CRITERIA: dict[str, Callable[[Any], Any]] = {
    "group": lambda tp: tp.importance.GroupMagnitudeImportance(p=2),
    "fpgm": lambda tp: tp.importance.FPGMImportance(),
    "taylor": lambda tp: tp.importance.GroupTaylorImportance(),
    "obd": lambda tp: tp.importance.OBDCImportance(num_classes=10),
    "random": lambda tp: tp.importance.RandomImportance(),
}


def torch_pruning(
    model: nn.Module, x: Tensor, criterion: str, shares: Sequence[float], *, uniform: bool = False,
    labelled: Sequence[Any] = (), steps: int = 250,
) -> Iterator[tuple[nn.Module, float]]:  # fmt: skip
    """For each of `shares`, descending: (cut model, the share of the MACs that it has, by bough's count).

    It cuts in `steps`, each with scores made again, those of losses from one batch more; the first step that comes to a share
    or below it is taken. Torch-Pruning fails on padded shortcuts, so the channels of residual streams are left alone for it:
    what each layer puts out that shares its channels with another layer's output.
    """
    small, graph = copy.deepcopy(model).eval(), bough.trace(model, x[:2])
    step = _stepper(small, x, criterion, streams(graph), iterative_steps=steps, pruning_ratio=1.0, global_pruning=not uniform)
    wanted = list(shares)
    for number in range(steps):
        step(labelled[number % len(labelled)] if labelled else None)
        kept = bough.trace(small, x[:2]).cost().macs / graph.cost().macs
        while kept <= wanted[0]:
            yield copy.deepcopy(small).eval(), kept
            del wanted[0]
            if not wanted:
                return


def torch_pruning_at_once(
    model: nn.Module, x: Tensor, criterion: str, shares: Sequence[float], *, uniform: bool = False,
    labelled: Sequence[Any] = (), tries: int = 8, with_streams: bool = False,
) -> Iterator[tuple[nn.Module, float]]:  # fmt: skip
    """The same in one step, scored once on all of `labelled`: its ratio of channels is bisected until the MACs are those.

    `with_streams`: residual streams are cut too, and only the model's outputs are left alone.
    """
    graph, found = bough.trace(model, x[:2]), {}
    batch = tuple(torch.cat(parts) for parts in zip(*labelled, strict=True)) if labelled else None

    def at(ratio: float) -> tuple[nn.Module, float]:
        small = copy.deepcopy(model).eval()
        ignored = streams(graph, outputs_only=with_streams)
        _stepper(
            small, x, criterion, ignored, iterative_steps=1, pruning_ratio=ratio, global_pruning=not uniform
        )(batch)  # fmt: skip
        return small.eval(), bough.trace(small, x[:2]).cost().macs / graph.cost().macs

    for share in shares:
        low, high = 0.0, 0.95
        for _ in range(tries):
            middle = (low + high) / 2
            found[middle] = found.get(middle) or at(middle)
            low, high = (low, middle) if found[middle][1] <= share else (middle, high)
        yield min((f for f in found.values() if f[1] <= share), key=lambda f: share - f[1])


def _stepper(
    small: nn.Module, x: Tensor, criterion: str, ignored: Sequence[str], **options: Any
) -> Callable[[Any], None]:  # fmt: skip
    """Cuts `small` by one step each time it is called, with a batch for criteria of the loss."""
    import torch_pruning as tp

    importance = CRITERIA[criterion](tp)
    pruner = tp.pruner.GroupNormPruner if criterion == "group" else tp.pruner.BasePruner
    made = pruner(
        small, x[:1], importance=importance, max_pruning_ratio=0.95,
        ignored_layers=[small.get_submodule(n) for n in ignored], num_heads=_heads(small), **options,
    )  # fmt: skip

    def step(batch: Any) -> None:
        if criterion in ("taylor", "obd"):
            _gradients(small, made, importance, batch)
        made.step()
        for m in _attentions(small):  # its users write these numbers by hand, as its examples do
            m.heads = made.num_heads.get(m.qkv, m.heads)
            m.head_dim = m.qkv.out_features // (3 * m.heads)
        if criterion == "obd":
            importance._rm_hooks(small)
            importance._clear_buffer()
        small.zero_grad(set_to_none=True)

    return step


def _gradients(small: nn.Module, pruner: Any, importance: Any, batch: Any) -> None:
    """What criteria of the loss want before a step."""
    fisher = hasattr(importance, "_prepare_model")
    if fisher:  # what it prepares by gives None for groups without attention: a slip of version 1.6.1
        pruner._downstream_node_as_root_if_attention = lambda group: group
        importance._prepare_model(small, pruner)
        del pruner._downstream_node_as_root_if_attention
        importance.Fisher = defaultdict(lambda: torch.zeros(1))  # it also looks at layers that it was told to ignore
    images, labels = batch
    nn.functional.cross_entropy(small(images), labels).backward()
    if fisher:
        importance.step()


def _attentions(model: nn.Module) -> list[Any]:
    """Attentions with one projection for queries, keys and values, of which Torch-Pruning has to be told the heads."""
    return [m for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "heads")]


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    return {m.qkv: m.heads for m in _attentions(model)}


def streams(graph: bough.Graph, outputs_only: bool = False) -> list[str]:
    """Layers whose outputs share their channels with another's (depthwise ones only pass them on), or are the model's."""
    found: list[str] = []
    for group in (*graph.groups, *graph.frozen):
        outputs = [m.name.rpartition(".")[0] for m in group.members if m.dim == 0 and m.name.endswith("weight")]
        layers = [n for n in dict.fromkeys(outputs) if _mixes(graph.model.get_submodule(n))]
        if (len(layers) > 1 and not outputs_only) or group in graph.frozen:
            found += layers
    return list(dict.fromkeys(found))


def _mixes(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
