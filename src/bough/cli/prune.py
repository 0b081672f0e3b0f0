"""`bough prune`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import bough
from bough.cli.budgets import budget_of
from bough.cli.calibration import KNOWN, Batches, LossOf, calibration
from bough.cli.models import resolve
from bough.cli.options import Json, Model, Shape
from bough.cli.train import Task, prune_iteratively
from bough.cost import LatencyTable
from bough.errors import PlanError
from bough.planning.allocation import ALLOCATORS
from bough.recovery import Iterated, Training
from bough.report.tables import costs_table, show


def prune(
    model: Model,
    budget: Annotated[list[str], typer.Option(help="such as macs=50% or size=256KiB; may be repeated")],
    input_shape: Shape = None,
    importance: Annotated[str, typer.Option(help=f"the criterion: {KNOWN}")] = "l2",
    data: Batches = None,
    loss: LossOf = None,
    refit: Annotated[bool, typer.Option("--refit", help="solve the cut model's weights anew, on --data")] = False,
    allocation: Annotated[str, typer.Option(help=", ".join(ALLOCATORS))] = "global",
    round_to: Annotated[int, typer.Option(help="widths become multiples of this")] = 1,
    ignore: Annotated[list[str] | None, typer.Option(help="a module, parameter or group to leave; may be repeated")] = None,
    minimum: Annotated[
        list[str] | None,
        typer.Option(help="least units kept, a number or a share: N of each group, GROUP=N of some; may be repeated"),
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="a layer to leave out, such as blocks.3; may be repeated")] = None,
    uniform: Annotated[bool, typer.Option(help="the same widths in repeated layers, told by the model's config")] = False,
    ragged: Annotated[bool, typer.Option(help="each head keeps head dims of its own, where the types allow it")] = False,
    exact_only: Annotated[bool, typer.Option(help="leave groups over which a statistic runs")] = False,
    table: Annotated[Path | None, typer.Option(help="JSON of a latency table, for --budget latency=...")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the plan and the weights")] = None,
    iterative: Annotated[int, typer.Option(help="cut in so many steps, with training by --task after each")] = 1,
    schedule: Annotated[str, typer.Option(help="of the steps: geometric, linear or cubic")] = "geometric",
    task: Task = None,
    epochs: Annotated[int, typer.Option(help="of training after each step")] = 1,
    lr: Annotated[float, typer.Option(help="highest learning rate")] = 1e-3,
    as_json: Json = False,
) -> None:
    """Cuts a model to a budget, at once or in steps with training in between, verifies it and saves it."""
    bounds = budget_of(budget)
    given = calibration(data, loss, [importance], progress=not as_json)
    criterion = bough.importance.criterion(importance, given.loss)
    net, inputs = resolve(model, input_shape)
    times = None if table is None else LatencyTable.load(table)
    how: dict[str, Any] = {
        "allocation": allocation, "round_to": round_to, "minimum": _minimum(minimum or ()), "drop": drop or (),
        "uniform": uniform, "ragged": ragged, "exact_only": exact_only, "table": times,
    }  # fmt: skip
    result: bough.Result | Iterated
    in_steps = iterative > 1 or task is not None
    if in_steps and refit:
        raise PlanError("--refit with --iterative or --task: each cut is followed by training already; leave one of them out")
    if iterative > 1 and drop:
        raise PlanError(
            "--drop with --iterative: a layer can be left out once, and each step would; cut in one step, or by width"
        )
    if in_steps:
        training = Training(epochs=epochs, lr=lr, folder=out, progress=not as_json)
        result = prune_iteratively(
            net, inputs, bounds, task, training, steps=iterative, schedule=schedule, importance=criterion,
            data=given.data, planning=partial(bough.plan, **how), ignore=ignore or (),
        )  # fmt: skip
    else:
        result = bough.prune(
            net, inputs, bounds, importance=criterion, data=given.data, refit=refit, ignore=ignore or (), **how
        )
    refitted = result.refit if isinstance(result, bough.Result) else None
    if out is not None:
        bough.save(result, out)
    if as_json:
        plan = result.plan
        typer.echo(
            json.dumps(
                {
                    "before": plan.original.to_dict(), "after": plan.cost.to_dict(), "groups": plan.groups,
                    "left_out": list(plan.left_out), "ragged": plan.ragged, "not_ragged": plan.alike,
                    "not_cut": plan.frozen, "notes": plan.notes,
                    "verification": result.report.to_dict(), "refit": None if refitted is None else refitted.to_dict(),
                    "saved": str(out) if out else None,
                }
            )
        )  # fmt: skip
        return
    show(costs_table({"before": result.plan.original.to_dict(), "after": result.plan.cost.to_dict()}))
    for note in result.plan.notes:
        typer.echo(note)
    for name in result.plan.left_out:
        typer.echo(f"left out: {name}")
    for name, why in result.plan.alike.items():
        typer.echo(f"not ragged: {name}: {why}")
    for name, why in result.plan.frozen.items():
        typer.echo(f"not cut: {name}: {why}")
    typer.echo(str(result.report))
    if refitted is not None:
        typer.echo(str(refitted))
    if out is not None:
        typer.echo(f"saved in {out}")


def _minimum(given: Iterable[str]) -> dict[str, float]:
    """Of each name or pattern (of all groups, where there is none) the number of units, or the share below 1."""
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            found[name or "*"] = float(value)
        except ValueError:
            raise PlanError(f"--minimum {text!r}: write GROUP=N, such as conv1=8 or 'layer1.*=0.25', or N alone") from None
    return found
