"""`bough supernet profile | train | extract`: one model whose subnets share its weights, trained once for many devices."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import bough
from bough.cli.budgets import budget_of
from bough.cli.calibration import Batches, batches
from bough.cli.models import Resolved, resolve
from bough.cli.options import Ignore, Json, Model, Only, Original, Overwrite, Shape, Tie, WeightsOf, chosen, given_by, ties_of
from bough.cli.options import training_options as options_of_training
from bough.cli.outputs import unused, writable
from bough.cli.planning import ALLOCATION, Minimum, RoundTo, allocation_of, least
from bough.cli.references import find
from bough.cli.tasks import CONTRACT, task_of
from bough.cli.train import Forward, digest
from bough.cutting.cut import copied
from bough.errors import CheckpointError, PlanError
from bough.latency import LatencyTable
from bough.recovery import Training
from bough.recovery.training import STATE_FILE
from bough.supernet import Profile

STATUS = "Exit status: 0 done, 1 failed (one line on stderr says why), 2 the command line can not be understood."

app = typer.Typer(no_args_is_help=True, help="One model whose subnets share its weights: train once for many devices.")

Budgets = Annotated[
    list[str] | None,
    typer.Option("--budget", help="bounds of one device, such as macs=50% or macs=50%,peak_memory=64KiB; again for another"),
]
Saved = Annotated[Path, typer.Option(help="a folder that `bough supernet train --out` wrote")]
TableOf = Annotated[Path | None, typer.Option(help="JSON of a latency table, for budgets of latency")]
Statistics = Annotated[
    str | None, typer.Option(help="module:fn; fn() gives batches, on which batch-norm statistics of subnets are set")
]


def supernet_options(
    *,
    importance: Annotated[str | None, typer.Option(help="criterion on weights, by which units are ordered")] = None,
    ignore: Ignore = None,
    only: Only = None,
    tie: Tie = None,
    round_to: RoundTo = None,
    minimum: Minimum = None,
    depth: Annotated[
        list[str] | None,
        typer.Option(
            help="a layer that may be left out, or a pattern; `all` for all in lists; may be repeated, first goes first"
        ),
    ] = None,
) -> dict[str, Any]:
    """Return the keyword arguments of `bough.supernet` that were given."""
    return chosen(
        importance=importance, ignore=ignore or None, only=only or None, tie=ties_of(tie),
        round_to=int(round_to) if round_to is not None and round_to.isdigit() else round_to,
        minimum=least(minimum) if minimum else None,
        depth=None if not depth else True if depth == ["all"] else depth,
    )  # fmt: skip


@given_by(options=supernet_options)
def profile(
    model: Model, *, options: dict[str, Any], budget: Budgets = None, table: TableOf = None, input_shape: Shape = None,
    weights: WeightsOf = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the smallest, middle and largest subnet, and whether budgets can be met, before anything is trained."""
    given = resolve(model, input_shape, weights, values=False, quiet=as_json)
    net = bough.supernet(given.model, given.inputs, **options)
    found = net.profile(_budgets(budget), **_table(table))
    widths = {n: w.counts[:, i].tolist() for w in net.space.widths for i, n in enumerate(w.groups)}
    if as_json:
        layers = {"elastic": widths, "depths": [list(names) for names in net.space.depths], "frozen": net.frozen}
        typer.echo(json.dumps({**found.to_dict(), **layers, "weights": given.weights.to_dict()}))
        return
    typer.echo(found)
    for name, counts in widths.items():
        typer.echo(f"elastic: {name}: {counts[-1]} to {counts[0]} units, {len(counts)} widths")
    for names in net.space.depths:
        typer.echo(f"elastic depth, left out in this order: {', '.join(names)}")
    for name, why in net.frozen.items():
        typer.echo(f"not elastic: {name}: {why}")


@given_by(options=supernet_options, training=options_of_training)
def train(
    model: Original,
    task: Annotated[str, typer.Argument(help=CONTRACT)],
    *,
    options: dict[str, Any],
    training: Training,
    budget: Budgets = None,
    table: TableOf = None,
    data: Statistics = None,
    only_budgets: Annotated[
        bool, typer.Option(help="each step trains the subnets of the budgets alone; for devices that are known")
    ] = False,
    allocation: Annotated[str | None, typer.Option(help=f"with --only-budgets: {ALLOCATION}")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="model whose logits all subnets learn: `original` for MODEL as it is (trained weights), or as MODEL"),
    ] = None,
    random: Annotated[int | None, typer.Option(help="random subnets of a step, beside largest and smallest")] = None,
    shrinking: Annotated[float | None, typer.Option(help="share of steps over which subnets become smaller")] = None,
    temperature: Annotated[float | None, typer.Option(help="of the logits of both, in distillation")] = None,
    logits: Annotated[float | None, typer.Option(help="from 0 (labels alone) to 1 (the largest subnet's logits alone)")] = None,
    forward: Forward = None,
    input_shape: Shape = None,
    weights: WeightsOf = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train all subnets of a model together, and save the supernet; budgets that no subnet meets end it before it begins."""
    assert training.folder is not None
    out = Path(training.folder)
    writable(out, folder=True)
    unused(out, overwrite, run=STATE_FILE)
    if only_budgets and not budget:
        raise PlanError("--only-budgets trains the subnets of --budget: give at least one, such as --budget macs=50%")
    if allocation is not None and not only_budgets:
        raise PlanError("--allocation divides the budgets of --only-budgets, which is not given")
    given, original = task_of(task), resolve(model, input_shape, weights, quiet=as_json)
    start = digest(original.model)
    net = bough.supernet(original.model, original.inputs, **options)
    budgets = _budgets(budget)
    found: Profile = net.profile(budgets, **_table(table))
    found.require_budgets()
    options_within = {**chosen(allocation=None if allocation is None else allocation_of(allocation)), **_table(table)}
    subnets = [net.within(b, **options_within) for b in budgets] if only_budgets else None
    if not as_json:
        typer.echo(found)
    distillation = replace(bough.Sandwich().distillation, **chosen(temperature=temperature, logits=logits))
    sandwich = bough.Sandwich(**chosen(random=random, shrinking=shrinking, distillation=distillation))
    done = net.fit(
        given.train, replace(training, progress=not as_json, start=start), sandwich=sandwich, subnets=subnets,
        teacher=_teacher(teacher, original), loss=given.loss, evaluate=given.metric,
        data=None if data is None else batches(data, progress=False),
        **chosen(forward=None if forward is None else find(forward)),
    )  # fmt: skip
    if os.environ.get("RANK", "0") != "0":  # one of several processes
        return
    path = net.save(out, overwrite=True)
    if as_json:
        typer.echo(json.dumps({**done.to_dict(), **found.to_dict(), "saved": str(path)}))
    else:
        typer.echo(f"{done}\nsaved as {path}, with log.jsonl and curve.png")


def extract(
    model: Original,
    *,
    checkpoint: Saved,
    out: Annotated[Path | None, typer.Option(help="folder for the subnet's checkpoint, which bough.load reads")] = None,
    budget: Budgets = None,
    subnet: Annotated[Path | None, typer.Option(help="JSON of a subnet, or of a table of subnets with --row")] = None,
    row: Annotated[str | None, typer.Option(help="the row of --subnet's table")] = None,
    table: TableOf = None,
    allocation: Annotated[str | None, typer.Option(help=ALLOCATION)] = None,
    data: Batches = None,
    input_shape: Shape = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Extract a subnet of a saved supernet as an ordinary pruned model: by a budget, or by widths in a file."""
    writable(out, folder=True)
    unused(out, overwrite)
    if (budget is None) == (subnet is None):
        raise PlanError("give either --budget or --subnet, and not both")
    original = resolve(model, input_shape, values=False, quiet=True)
    net = bough.Supernet.load(checkpoint, lambda: _copy(original), original.inputs)
    target = budget_of(budget) if budget is not None else _target(subnet, row)
    found = net.extract(
        target, data=None if data is None else batches(data, progress=not as_json),
        **chosen(allocation=None if allocation is None else allocation_of(allocation)), **_table(table),
    )  # fmt: skip
    if out is not None:
        bough.save(found, out, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps({**found.to_dict(), "saved": None if out is None else str(out)}))
    else:
        typer.echo(f"{found}" + ("" if out is None else f"\nsaved in {out}"))


def _budgets(given: Sequence[str] | None) -> list[bough.Budget]:
    return [budget_of([text]) for text in given or ()]


def _table(path: Path | None) -> dict[str, Any]:
    return {} if path is None else {"table": LatencyTable.load(path)}


def _teacher(reference: str | None, original: Resolved) -> torch.nn.Module | None:
    """Return the model that --teacher names."""
    if reference is None:
        return None
    found = original if reference == "original" else resolve(reference, None, None, quiet=True)
    return found.model


def _copy(original: Resolved) -> Any:
    return copied(original.model, lambda name, tensor, parameter: tensor.clone())[0]


def _target(path: Path | None, row: str | None) -> Any:
    """Return the subnet that --subnet and --row name.

    Raises:
        PlanError: the file holds neither a subnet nor a table with that row.
    """
    assert path is not None
    if row is not None:
        return bough.SubnetTable.load(path)[row]
    try:
        return bough.Subnet.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"--subnet {path}: there is no such file") from None
    except ValueError as error:
        raise PlanError(f"--subnet {path} is no JSON of a subnet: {error}") from None


EXAMPLES: dict[Callable[..., None], str] = {
    profile: "bough supernet profile mypackage.models:build --depth all --budget macs=25%",
    train: "bough supernet train mypackage.models:build mypackage.data:task --budget macs=25% --teacher original --out net",
    extract: "bough supernet extract mypackage.models:build --checkpoint net --budget macs=50% --out small",
}
for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: {example}\n\n{STATUS}")(command)
