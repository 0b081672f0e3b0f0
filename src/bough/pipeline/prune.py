"""`prune`: tracing, scores, plan, cut, verification and refit in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from bough.arguments import check_arguments
from bough.calibration import Data, as_data, require_reiterable
from bough.cost import EnergyModel
from bough.cutting import Verification, cut, rebuild, verify
from bough.cutting.cut import plain_copy
from bough.cutting.verification import check_on_mismatch, require_equal
from bough.defaults import Choice, Chosen, Sample, candidates, choose, choose_layers, sample_of
from bough.errors import PlanError, TraceError
from bough.exporting import Footprint
from bough.importance import Criterion, DataCriterion, resolve_criterion
from bough.importance.score import with_data_reached
from bough.latency import LatencyTable
from bough.planning import Allocator, Budget, OnConflict, Options, Plan
from bough.planning.allocation import LeastError, allocator
from bough.recovery import MergedExperts, Refit, refit_
from bough.recovery import merge_experts as merged_experts
from bough.targeting import export_limits, of_this_machine, placed, targeted
from bough.tracing import observed, trace
from bough.tracing.selection import Selection
from bough.tracing.typing.ties import Ties

_MORE = (
    "unlabelled inputs would let bough choose the units by what their removal does to the outputs, and refit the layers that "
    "read them: bough.prune(model, example_inputs, budget, data=batches)"
)


@dataclass(frozen=True, slots=True)
class Result:
    """What `prune` gives: the cut model, the plan it was cut by, the proof of its equality, what was done to it after.

    `latency`: for a budget of latency, the seconds that were measured of the cut model. `choice`: the criterion, the
    allocation and the data that were used where they were left open. `footprint`: for a budget of peak memory and flash at
    int8, the bytes of the cut model's export to C. `merged`: which experts were merged, with `merge_experts=True`.
    """

    model: nn.Module
    plan: Plan
    report: Verification
    latency: float | None = None
    refit: Refit | None = None
    choice: Choice | None = None
    footprint: Footprint | None = None
    merged: MergedExperts | None = None

    def to_dict(self) -> dict[str, Any]:
        measured = {} if self.latency is None else {"latency": self.latency}
        refitted = {} if self.refit is None else {"refit": self.refit.to_dict()}
        chosen = {} if self.choice is None else {"choice": self.choice.to_dict()}
        placed = {} if self.footprint is None else {"footprint": asdict(self.footprint)}
        merged = {} if self.merged is None else {"merged": self.merged.to_dict()}
        return {
            "plan": self.plan.to_dict(), "verification": self.report.to_dict(), **measured, **refitted, **chosen, **placed,
            **merged,
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join(str(x) for x in (self.choice, self.plan, self.report, self.refit, self.merged) if x is not None)


def prune(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget,
    *,
    importance: str | Criterion | DataCriterion | None = None,
    data: Data | Iterable[Any] | None = None,
    refit: bool | None = None,
    merge_experts: bool = False,
    ignore: Selection = (),
    only: Selection | None = None,
    tie: Ties | None = None,
    allocation: str | Allocator | None = None,
    round_to: int | str = 1,
    minimum: float | Mapping[Any, float] = 1,
    drop: Iterable[str] = (),
    exact_only: bool = False,
    uniform: bool = False,
    ragged: bool = False,
    on_conflict: str = "freeze",
    table: LatencyTable | None = None,
    energy: EnergyModel | None = None,
    on_mismatch: str = "raise",
) -> Result:
    """Cut a model to a budget in one call: trace, score, plan, cut, verify, and refit; `model` stays as it was.

    What is left open is chosen for the model, and `Result.choice` says how. With `data`, the candidates of
    `bough.defaults.WITH_DATA` are cut, refitted on a part of the data and compared on another part; the one whose outputs
    differ the least from the dense model's is refitted on the first 1,024 samples (or 256 MiB) of the data. If it cuts groups
    that four or more products read, such as residual streams, it is tried with these left whole, too. Without data,
    models whose batch norms keep statistics are given synthetic inputs (see `bough.synthesize`) where making them takes no
    longer than about half a minute; other models are cut by their weights alone, and not refitted.

    Args:
        model, example_inputs, ignore, only, tie: as for `trace`. Of several calls, the budget counts the first one's costs, and
            data is passed through the first one; the cut fits all of them, and `verify` compares all.
        budget: upper bounds on what remains.
        importance: the criterion that scores units, as for `score`; with it, all of `data` is used. With a criterion of whole
            layers ("block_influence", `LayerLoss(loss)`), layers of lowest score are left out until the budget holds, and no
            width is cut.
        data: batches, unlabelled unless the criterion needs a loss, as for `score`.
        refit: whether the layers that read what was cut are refitted, as `refit` does; True and False are obeyed, and
            None refits where there is data. True uses all of `data`.
        merge_experts: whether the experts of mixtures that are cut are merged into those that stay, as
            `bough.recovery.merge_experts` does, on `data`; nothing is refitted then. Without `importance`, the criterion is
            "expert_clusters".
        allocation: how the budget is met, as for `plan`.
        round_to, minimum, drop, exact_only, uniform, ragged, on_conflict, table, energy: as for `plan`. For a budget of
            latency `table` is needed; if it is of the machine at hand, the cut model is measured and planned again until
            it meets the budget (see `meet_latency`); otherwise the table is believed, and the plan's notes say so. A budget of
            peak memory at int8, with flash or round_to="cortex-m", is met by the C export to the byte (see `meet_arena`). With
            `on_conflict="rebuild"` a plan that the model's Python contradicts is carried out by `rebuild`.

        on_mismatch: "raise" raises where `verify` finds the cut model different from the masked original; "return" returns it.

    Raises:
        VerificationError: the cut model differs from the masked original; the result is attached.
        BudgetError, PlanError, ConflictError, TraceError: as the stages do; with several candidates, if all of them fail.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> result = bough.prune(net, torch.randn(1, 4), bough.Budget(params="50%"))
        >>> result.model[0].out_features, result.report.equal
        (3, True)
    """
    check_arguments(prune, locals())
    check_on_mismatch(on_mismatch)
    if refit and data is not None:
        require_reiterable(as_data(data))
    if refit and on_conflict == OnConflict.REBUILD:
        raise PlanError("prune(refit=True) solves for weights of the model's own layers: use on_conflict='freeze' or 'raise'")
    options = Options(
        round_to=round_to, minimum=minimum, drop=drop, exact_only=exact_only, uniform=uniform, ragged=ragged,
        on_conflict=on_conflict, table=table, energy=energy,
    )  # fmt: skip
    if merge_experts:
        importance, refit = _merging(importance, refit, data, on_conflict), False
    criterion = None if importance is None else resolve_criterion(importance)
    _check_errors(criterion, allocation, data)
    by_layers = getattr(criterion, "scores_layers", False)
    if by_layers and (allocation is not None or ragged):
        raise PlanError(
            f"{type(criterion).__name__} scores whole layers, which are left out in order: leave allocation and ragged out, or "
            "use a criterion of units"
        )
    if any(t.is_inference() for t in (*model.parameters(), *model.buffers())):
        model = plain_copy(model)  # gradients pass through no tensor that was made in inference mode
    graph = trace(model, example_inputs, ignore=ignore, only=only, tie=tie)
    sample = None
    if data is not None or (importance is None and refit is not False and on_conflict != OnConflict.REBUILD):
        sample = sample_of(graph, data, everything=importance is not None or refit is True)
    if sample is not None:
        graph = observed(graph)
    if refit and sample is None:
        raise PlanError("prune(refit=True) needs data: unlabelled batches, such as data=loader")
    refits = sample is not None and (on_conflict != OnConflict.REBUILD if refit is None else refit)
    open_to = candidates(criterion, allocation, getattr(criterion, "gives_errors", False), sample is not None)
    graph = with_data_reached(graph, (c.importance for c in open_to))
    limits, notes = export_limits(graph, budget, options)
    within = limits.budget if limits else budget
    if by_layers:
        chosen = choose_layers(graph, within, options, criterion, sample)
    else:
        chosen = choose(graph, within, options, open_to, sample, refit=refits)
    plan, seconds, bytes_of_c = replace(chosen.plan, notes=(*chosen.plan.notes, *notes)), None, None
    if limits is not None:
        fitted = placed(graph, chosen.scores, budget, limits, chosen.options)
        small, plan, bytes_of_c = fitted.model, fitted.plan, fitted.footprint
    elif budget.latency is not None and table is not None and of_this_machine(table, graph):
        timed = targeted(graph, chosen.scores, budget, table, chosen.options)
        small, plan, seconds = timed.model, timed.plan, timed.seconds
    else:
        small = rebuild(model, plan, example_inputs) if plan.rebuild else cut(model, plan)
    report = verify(model, small, plan, example_inputs)
    require_equal(report, Result(small, plan, report, seconds, footprint=bytes_of_c), on_mismatch)
    refitted, notes = None, () if data is not None else (_MORE,)
    if sample is not None and len(graph.calls) > 1:
        notes = (f"data was passed through the first call alone, {graph.call}: see docs/calls.md", *notes)
    if refits and sample is not None:
        try:
            refitted = refit_(model, small, plan, sample.data, example_inputs=example_inputs)
        except (PlanError, TraceError) as error:
            if refit:
                raise
            notes = (f"not refitted: {error}", *notes)
    merged = merged_experts(graph, plan, sample.data) if merge_experts and sample is not None else None
    small = small if merged is None else merged.model
    return Result(small, plan, report, seconds, refitted, _choice(chosen, sample, refitted, notes), bytes_of_c, merged)


def _merging(importance: Any, refit: bool | None, data: object, on_conflict: str) -> Any:
    """Return the criterion of a prune that merges experts.

    Raises:
        PlanError: merging does not go with the other arguments.
    """
    if data is None:
        raise PlanError("prune(merge_experts=True) needs data: unlabelled batches, such as data=loader")
    if refit:
        raise PlanError("prune(merge_experts=True, refit=True): refit would undo the averages of experts; give one of them")
    if on_conflict == OnConflict.REBUILD:
        raise PlanError("prune(merge_experts=True) writes the model's own parameters: use on_conflict='freeze' or 'raise'")
    return "expert_clusters" if importance is None else importance


def _choice(chosen: Chosen, sample: Sample | None, refitted: Refit | None, notes: tuple[str, ...]) -> Choice:
    importance, allocation = chosen.candidate.names
    origin = sample.origin if sample else ""
    return Choice(importance, allocation, origin, refitted is not None, chosen.whole, chosen.trials, notes)


def _check_errors(criterion: Criterion | DataCriterion | None, allocation: str | Allocator | None, data: object) -> None:
    """Raise PlanError if the allocation takes errors and the criterion's scores are none."""
    if allocation is None or not isinstance(allocator(allocation), LeastError) or getattr(criterion, "gives_errors", False):
        return
    if criterion is not None:
        raise PlanError(
            f"{type(criterion).__name__} does not say that its scores are errors, which allocation='error' takes: use "
            "importance=OBS(relative=True) with data, or set gives_errors = True on a criterion of your own"
        )
    if data is None:
        raise PlanError(
            "allocation='error' takes scores that are errors, which need data: unlabelled batches, such as data=loader"
        )
