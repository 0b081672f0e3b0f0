"""How a network becomes smaller before its last training: each way with the epochs that it spends itself."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import bough
from benchmarks.peers import torch_pruning
from bough import recovery
from bough.recovery import regularize

STEM = ("conv1",)  # with it the residual streams keep their channels, as they must for Torch-Pruning


@dataclass(frozen=True)
class Setting:
    """What a start is given: the trained network, unlabelled images, the share of MACs to keep, and how to train."""

    model: nn.Module
    unlabelled: list[Tensor]
    share: float
    data: Any
    training: recovery.Training

    @property
    def budget(self) -> bough.Budget:
        return bough.Budget(macs=f"{self.share:%}")

    @property
    def folder(self) -> Path:
        assert self.training.folder is not None
        return Path(self.training.folder)

    def trained(self, model: nn.Module, epochs: int, name: str, **more: Any) -> None:
        """Trains in place for some of the epochs, in a folder of its own."""
        part = replace(self.training, epochs=epochs, folder=self.folder / name)
        recovery.finetune(model, self.data, part, **more)


@dataclass(frozen=True)
class Cut:
    """A smaller network, the share of the MACs it has, and the epochs spent on it so far."""

    model: nn.Module
    kept: float
    epochs: int = 0
    plan: bough.Plan | None = None  # from the trained network, where one cut led here


def kept(plan: bough.Plan) -> float:
    return plan.cost.macs / plan.original.macs


def by_error(given: Setting) -> bough.Plan:
    """OBS, and the least error that adds up per MAC."""
    graph = bough.trace(given.model, given.unlabelled[0][:2])
    scores = bough.score(graph, OBS, given.unlabelled[: len(given.unlabelled) // 2])
    return bough.plan(graph, scores, given.budget, allocation="error", ignore=STEM)


def cut(given: Setting) -> Cut:
    plan = by_error(given)
    return Cut(bough.cut(given.model, plan), kept(plan), plan=plan)


def refit(given: Setting) -> Cut:
    """The same units as `cut`, then least squares: no labels, no training."""
    plan = by_error(given)
    small = recovery.refit(given.model, bough.cut(given.model, plan), plan, given.unlabelled).model
    return Cut(small, kept(plan), plan=plan)


def onward(given: Setting) -> Cut:
    """From where the row BEFORE ended, which has to be there with its checkpoint: `refit` once more."""
    name, epochs = re.sub("onward-.*-seed", f"{BEFORE}-seed", given.folder.name), 24
    before = given.folder.parent / name / "checkpoint"
    middle = bough.load(before, lambda: copy.deepcopy(given.model))
    first = (
        bough.trace(middle, given.unlabelled[0][:2]).cost().macs / bough.trace(given.model, given.unlabelled[0][:2]).cost().macs
    )
    small = refit(replace(given, model=middle.eval(), share=given.share / first))
    return Cut(small.model, small.kept * first, epochs)


def iterate(given: Setting) -> Cut:
    """As `cut`, in three steps with a third of the epochs after each; the last third is the recipe's."""
    steps = 3
    part = given.training.epochs // steps

    def recover(small: nn.Module, step: int) -> None:
        if step < steps - 1:
            given.trained(small, part, f"step-{step}")

    done = bough.iterate(
        given.model, given.unlabelled[0][:2], given.budget, recover, steps=steps, importance=OBS,
        data=given.unlabelled[: len(given.unlabelled) // 2], planning=partial(bough.plan, allocation="error", ignore=STEM),
    )  # fmt: skip
    return Cut(done.model, kept(done.plan), (steps - 1) * part)


def sparse(given: Setting) -> Cut:
    """DepGraph's sparse learning of the whole network for half of the epochs, then a cut by the norms that are left."""
    return _regularized(given, lambda graph, steps: regularize.SparseLearning(graph))


def lasso(given: Setting) -> Cut:
    """The same by a proximal group lasso."""
    return _regularized(given, lambda graph, steps: regularize.GroupLasso(graph, strength=2e-3))


def zeroing(given: Setting) -> Cut:
    """Units fade to zero in half of the epochs, in five periods, and the zeros are cut."""
    return _regularized(given, lambda graph, steps: regularize.ProgressiveZeroing(graph, given.budget, steps=steps // 5))


def _regularized(given: Setting, make: Callable[[bough.Graph, int], Any]) -> Cut:
    graph, half = bough.trace(given.model, given.unlabelled[0][:2], ignore=STEM), given.training.epochs // 2
    regularizer = make(graph, half * len(given.data))
    given.trained(given.model, half, "regularized", regularizers=[regularizer])
    given.model.eval()
    plan = getattr(regularizer, "plan", None)
    if plan is None:
        plan = bough.plan(graph, regularizer.scores(), given.budget, allocation="greedy")
    return Cut(bough.cut(given.model, plan), kept(plan), half)


def peer(given: Setting) -> Cut:
    """Torch-Pruning's group-norm pruner, without its sparse learning."""
    return Cut(*next(torch_pruning(given.model, given.unlabelled[0], "group", [given.share])))


OBS = bough.importance.OBS(sites=64, relative=True)
DISTILLATION = recovery.Distillation(temperature=4, logits=0.9)
BEFORE = "refit-distill-2.57x-24-epochs-lr-0.02"
STARTS: dict[str, Callable[[Setting], Cut]] = {
    "refit": refit, "cut": cut, "onward": onward, "iterate": iterate, "sparse": sparse, "lasso": lasso, "zeroing": zeroing,
    "torch-pruning": peer,
}  # fmt: skip
