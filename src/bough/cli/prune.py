"""`bough prune`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

import bough
from bough.cli.budgets import budget_of
from bough.cli.calibration import KNOWN, LAYERS, Batches, LossOf, calibration
from bough.cli.flags import in_flags
from bough.cli.models import resolve
from bough.cli.options import Ignore, Json, Model, Only, Overwrite, Shape, Tie, WeightsOf, chosen, given_by, ties_of
from bough.cli.outputs import save, unused, writable
from bough.cli.planning import ALLOCATION, allocation_of, planning_options
from bough.cli.processes import Distributed, join_processes
from bough.cli.steps import Steps, prune_iteratively, step_options
from bough.cli.stream import prune_stream
from bough.errors import PlanError, VerificationError
from bough.planning import stale_lines
from bough.recovery import Iterated
from bough.report.tables import costs_table, show


@given_by(planning=planning_options, steps=step_options)
def prune(
    model: Model,
    budget: Annotated[list[str], typer.Option(help="such as macs=50% or size=256KiB; may be repeated")],
    *,
    planning: dict[str, Any],
    steps: Steps | None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    importance: Annotated[
        str | None, typer.Option(help=f"the criterion: {KNOWN}; to leave out whole layers until the budget holds: {LAYERS}")
    ] = None,
    allocation: Annotated[str | None, typer.Option(help=ALLOCATION)] = None,
    data: Batches = None,
    loss: LossOf = None,
    refit: Annotated[bool | None, typer.Option(help="solve the cut model's weights again, on --data")] = None,
    merge_experts: Annotated[
        bool | None, typer.Option(help="average experts that are cut into similar ones that stay, on --data")
    ] = None,
    ignore: Ignore = None,
    only: Only = None,
    tie: Tie = None,
    on_mismatch: Annotated[
        str | None, typer.Option(help="where the cut model is not the masked original: raise (nothing is saved) or return")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the plan and the weights")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="for hf:PATH: prune the files one by one, without loading the model (as --uniform)")
    ] = False,
    distributed: Distributed = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Cut a model to a budget, at once or in steps with training in between, verify it and save it."""
    if stream:
        words = dict(
            weights=weights, input_shape=input_shape, importance=importance, data=data, loss=loss, refit=refit, tie=tie,
            ignore=ignore or None, only=only or None, on_mismatch=on_mismatch, iterative=steps,
            distributed=distributed or None, merge_experts=merge_experts, **planning,
            allocation=None if allocation is None else allocation_of(allocation),
        )  # fmt: skip
        prune_stream(model, budget_of(budget), out, words, overwrite=overwrite, as_json=as_json)
        return
    processes = join_processes(distributed)
    writable(out, folder=True)
    unused(out, overwrite)
    if distributed and (data is None or steps is not None):
        raise PlanError("--distributed shares --data in a single step: give --data, without --iterative and --task")
    if steps is not None:
        _refuse(steps, refit, merge_experts, planning)
    bounds = budget_of(budget)
    given = calibration(data, loss, [importance] if importance else [], progress=not as_json)
    planning |= chosen(allocation=None if allocation is None else allocation_of(allocation))
    options = chosen(
        importance=None if importance is None else given.criterion(importance), data=processes.share(given.data),
        ignore=ignore or None, only=only or None, tie=ties_of(tie), on_mismatch=on_mismatch,
    )  # fmt: skip
    net = resolve(model, input_shape, weights, quiet=as_json or not processes.writes)
    result: bough.Result | Iterated
    try:
        if steps is None:
            result = bough.prune(
                net.model, net.inputs, bounds, **options, **planning, **chosen(refit=refit, merge_experts=merge_experts)
            )
        else:
            result = prune_iteratively(
                net, bounds, steps, folder=out, progress=not as_json, planning=partial(bough.plan, **planning), **options
            )
    except VerificationError as error:
        message = f"{error.result.report}; nothing was saved; with --on-mismatch return it is saved all the same"
        raise VerificationError(message, error.result) from error
    if not processes.writes:
        return
    message = ""
    if out is not None:
        message = save(result.model, result.plan, out, model)
    if as_json:
        saved = str(out) if out else None
        typer.echo(json.dumps({**_as_json(result), "weights": net.weights.to_dict(), "saved": saved}))
        return
    show(costs_table({"before": result.plan.original.to_dict(), "after": result.plan.cost.to_dict()}))
    for line in _lines(result):
        typer.echo(in_flags(line, signature(prune).parameters))
    if out is not None:
        typer.echo(message)


def _refuse(steps: Steps, refit: bool | None, merge_experts: bool | None, planning: dict[str, Any]) -> None:
    if merge_experts:
        raise PlanError("--merge-experts with --iterative or --task: experts are merged in one step; leave one of them out")
    if refit:
        raise PlanError("--refit with --iterative or --task: each cut is followed by training already; leave one of them out")
    if steps.count > 1 and planning.get("drop"):
        raise PlanError(
            "--drop with --iterative: a layer can be left out once, and each step would; cut in one step, or by width"
        )


def _refitted(result: bough.Result | Iterated) -> bough.recovery.Refit | None:
    return result.refit if isinstance(result, bough.Result) else None


def _merged(result: bough.Result | Iterated) -> bough.recovery.MergedExperts | None:
    return result.merged if isinstance(result, bough.Result) else None


def _choice(result: bough.Result | Iterated) -> Any:
    """Return what `prune` chose where options were left out, if it says so."""
    return getattr(result, "choice", None)


def _as_json(result: bough.Result | Iterated) -> dict[str, Any]:
    plan, refitted, merged, choice = result.plan, _refitted(result), _merged(result), _choice(result)
    footprint = result.footprint if isinstance(result, bough.Result) else None
    return {
        "before": plan.original.to_dict(), "after": plan.cost.to_dict(), "groups": plan.groups,
        "left_out": list(plan.left_out), "ragged": plan.ragged, "not_ragged": plan.alike, "not_cut": plan.frozen,
        "stale": [s.to_dict() for s in plan.stale], "notes": plan.notes, "unreached": plan.unreached, "tie": plan.tie,
        "verification": result.report.to_dict(),
        "refit": None if refitted is None else refitted.to_dict(),
        "merged": None if merged is None else merged.to_dict(),
        "choice": None if choice is None else choice.to_dict(),
        "footprint": None if footprint is None else asdict(footprint),
    }  # fmt: skip


def _lines(result: bough.Result | Iterated) -> Iterator[str]:
    plan, refitted, choice = result.plan, _refitted(result), _choice(result)
    if choice is not None:
        yield from str(choice).splitlines()
    yield from (f"cut: {name}: {kept} of {size}" for name, (kept, size) in plan.groups.items() if kept < size)
    yield from plan.notes
    yield from plan.unreached_lines()
    yield from plan.tie_lines()
    yield from (f"left out: {name}" for name in plan.left_out)
    yield from (f"not ragged: {name}: {why}" for name, why in plan.alike.items())
    yield from (f"not cut: {name}: {why}" for name, why in plan.frozen.items())
    yield from stale_lines(plan.stale)
    yield str(result.report)
    if refitted is not None:
        yield str(refitted)
    if (merged := _merged(result)) is not None:
        yield from str(merged).splitlines()
