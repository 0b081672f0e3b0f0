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

    It cuts in `steps`, each with scores made anew, those of losses from one batch more; the first step that comes to a share
    or below it is taken. Torch-Pruning fails on padded shortcuts, so the channels of residual streams are left alone for it:
    what each layer puts out that shares its channels with another layer's output.
    """
    import torch_pruning as tp

    small, graph = copy.deepcopy(model).eval(), bough.trace(model, x[:2])
    importance = CRITERIA[criterion](tp)
    pruner = tp.pruner.GroupNormPruner if criterion == "group" else tp.pruner.BasePruner
    made = pruner(
        small, x[:1], importance=importance, iterative_steps=steps, pruning_ratio=1.0, max_pruning_ratio=0.95,
        global_pruning=not uniform, ignored_layers=[small.get_submodule(n) for n in streams(graph)],
    )  # fmt: skip
    wanted = list(shares)
    for step in range(steps):
        if criterion in ("taylor", "obd"):
            _gradients(small, made, importance, labelled[step % len(labelled)])
        made.step()
        if criterion == "obd":
            importance._rm_hooks(small)
            importance._clear_buffer()
        small.zero_grad(set_to_none=True)
        kept = bough.trace(small, x[:2]).cost().macs / graph.cost().macs
        while kept <= wanted[0]:
            yield copy.deepcopy(small).eval(), kept
            del wanted[0]
            if not wanted:
                return


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


def streams(graph: bough.Graph) -> list[str]:
    """Layers whose outputs share their channels with another's, or are the model's."""
    found = []
    for group in (*graph.groups, *graph.frozen):
        outputs = [m.name.rpartition(".")[0] for m in group.members if m.dim == 0 and m.name.endswith("weight")]
        layers = [n for n in dict.fromkeys(outputs) if isinstance(graph.model.get_submodule(n), (nn.Conv2d, nn.Linear))]
        if len(layers) > 1 or group in graph.frozen:
            found += layers
    return list(dict.fromkeys(found))
