"""Stages that cut the model and solve its weights again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from bough.arguments import check_fields
from bough.errors import PipelineError
from bough.exporting import load, load_plan, save
from bough.exporting.contents import PLAN
from bough.exporting.contents import WEIGHTS as CHECKPOINT_WEIGHTS
from bough.importance import Criterion, DataCriterion
from bough.pipeline.changed_weights import ChangesWeights
from bough.pipeline.prune import Result, prune
from bough.pipeline.stage import Before, Shared, State
from bough.planning import Allocator, Budget
from bough.recovery import refit_


@dataclass(frozen=True, slots=True)
class Prune:
    """Cut the model to a budget, by `bough.prune` with the pipeline's `data`.

    Attributes:
        budget: upper bounds on what remains.
        importance, allocation, refit, merge_experts, ignore, only, round_to, minimum, drop, exact_only, uniform, ragged: as for
            `bough.prune`.

    Raises:
        ArgumentError: an option of another type.

    Example:
        >>> import bough
        >>> Prune(bough.Budget(macs="50%"), round_to=8).round_to
        8
    """

    name: ClassVar[str] = "prune"
    budget: Budget
    importance: str | Criterion | DataCriterion | None = None
    allocation: str | Allocator | None = None
    refit: bool | None = None
    merge_experts: bool = False
    ignore: Sequence[Any] | str = ()
    only: Sequence[Any] | str | None = None
    round_to: int | str = 1
    minimum: float | Mapping[Any, float] = 1
    drop: Sequence[str] = ()
    exact_only: bool = False
    uniform: bool = False
    ragged: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, before: Before) -> None:
        """Raise PipelineError after another cut, and for a refit without data."""
        if self.name in before.names:
            raise PipelineError(
                "two stages Prune: a pipeline cuts once; give the smaller budget, or run a pipeline after another"
            )
        before.require("Prune(refit=True)", data=bool(self.refit))
        before.require("Prune(merge_experts=True)", data=self.merge_experts)

    def run(self, state: State, shared: Shared, folder: Path) -> tuple[State, dict[str, Any]]:
        """Cut a copy of the model and save it with its plan."""
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        result = prune(state.model, shared.example_inputs, data=shared.data, **options)
        save(result, folder, overwrite=True)
        return replace(state, model=result.model, plan=result.plan), _details(result)

    def restore(self, state: State, shared: Shared, folder: Path) -> State:
        """Cut a copy of the model by the saved plan and load the saved weights."""
        small = load(folder, lambda: copy.deepcopy(state.model), shared.example_inputs)
        return replace(state, model=small, plan=load_plan(folder))

    def outputs(self, root: Path, folder: Path) -> tuple[Path, ...]:
        """Return the files of the checkpoint."""
        return (folder / PLAN, folder / CHECKPOINT_WEIGHTS)


def _details(result: Result) -> dict[str, Any]:
    """Return what a cut reports, without the indices of its plan, which are in the stage's folder."""
    plan = result.plan
    cut = {"groups": plan.groups, "left_out": list(plan.left_out), "not_cut": plan.frozen, "notes": list(plan.notes)}
    return {**cut, **{k: v for k, v in result.to_dict().items() if k != "plan"}}


@dataclass(frozen=True, slots=True)
class Refit(ChangesWeights):
    """Solve the cut model's weights for the outputs of the model before the cut, by `bough.refit` with the pipeline's `data`.

    `Prune` with data refits already; this stage is for `Prune(refit=False)`, or for other options.

    Attributes:
        ridge, sites, everything, skips, biases_only: as for `bough.refit`.

    Raises:
        ArgumentError: an option of another type.

    Example:
        >>> Refit(sites=64).sites
        64
    """

    name: ClassVar[str] = "refit"
    ridge: float | None = None
    sites: int = 128
    everything: bool = True
    skips: bool = True
    biases_only: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, before: Before) -> None:
        """Raise PipelineError without a cut, and without data."""
        if Prune.name not in before.names:
            raise PipelineError("Refit before Prune: there is nothing to refit before the cut")
        before.require("Refit", data=True)

    def run(self, state: State, shared: Shared, folder: Path) -> tuple[State, dict[str, Any]]:
        """Refit the model in place."""
        assert state.plan is not None
        assert shared.data is not None
        done = refit_(
            state.dense, state.model, state.plan, shared.data, ridge=self.ridge, sites=self.sites, everything=self.everything,
            skips=self.skips, biases_only=self.biases_only, example_inputs=shared.example_inputs,
        )  # fmt: skip
        self.save(state.model, folder)
        return state, done.to_dict()
