"""`bough compare`: criteria, allocations and budgets side by side, into a folder that a killed run goes on in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn
from torch.nn import functional as F

from bough.cli.budgets import budget_of
from bough.cli.models import find, resolve
from bough.comparing import compare as compare_criteria
from bough.comparing.folder import PLOT
from bough.errors import ComparisonError
from bough.importance import CRITERIA, Data
from bough.importance.data import moved, of
from bough.recovery.finetune import logits_of

_KNOWN = ", ".join(name for name, entry in CRITERIA.items() if entry.scores == "units")


def compare(
    model: Annotated[str, typer.Argument(help="module:callable, timm:NAME, torchvision:NAME or hf:PATH")],
    evaluate: Annotated[str, typer.Option(help="module:fn; fn(model) is the metric, or a dict of them, the first plotted")],
    budgets: Annotated[list[str], typer.Option(help="such as macs=50% or macs=50%,size=8MiB; may be repeated")],
    out: Annotated[Path, typer.Option(help="folder for rows and picture; rows that are there are not made again")],
    criteria: Annotated[list[str] | None, typer.Option(help=f"l2 unless given; may be repeated: {_KNOWN}")] = None,
    allocations: Annotated[list[str] | None, typer.Option(help="global unless given; may be repeated")] = None,
    data: Annotated[str | None, typer.Option(help="module:fn; fn() gives batches, for criteria on data and --refit")] = None,
    loss: Annotated[
        str | None, typer.Option(help="module:fn; fn(model, batch) is the loss; cross-entropy of (inputs, labels) unless given")
    ] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="of criteria that draw, random among them; may be repeated")] = None,
    refit: Annotated[bool, typer.Option("--refit", help="solve the cut models' weights anew before evaluating")] = False,
    input_shape: Annotated[str | None, typer.Option(help="sizes of the example input, such as 1,3,224,224")] = None,
    round_to: Annotated[int, typer.Option(help="widths become multiples of this")] = 1,
    ignore: Annotated[list[str] | None, typer.Option(help="a module, parameter or group to leave; may be repeated")] = None,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="of the first metric")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
) -> None:  # fmt: skip
    """Compares criteria, allocations and budgets on a metric of your own, with random scores as the control."""
    names = criteria or ["l2"]
    bounds = [budget_of(text.split(",")) for text in budgets]
    metric = find(evaluate)
    batches = None if data is None else of(find(data)())
    given_loss = find(loss) if loss is not None else cross_entropy
    if loss is None and batches is not None and any(n in CRITERIA and CRITERIA[n].needs == "loss" for n in names):
        _pairs(batches)
    net, inputs = resolve(model, input_shape)
    found = compare_criteria(
        net, inputs, names, bounds, metric, allocations=allocations or ["global"], seeds=seeds or [0], data=batches,
        loss=given_loss, refit=refit, ignore=ignore or (), folder=out, about={"data": str(data)}, round_to=round_to,
        lower_is_better=lower_is_better, progress=not as_json,
    )  # fmt: skip
    picture, why = out / PLOT, None
    try:
        found.plot(picture)
    except ComparisonError as error:
        why = str(error)
    if as_json:
        drawn = {"plot": None, "no_plot": why} if why else {"plot": str(picture)}
        typer.echo(json.dumps({**found.to_dict(), "folder": str(out), **drawn}))
    else:
        typer.echo(f"{found}\n{f'no picture: {why}' if why else f'picture: {picture}'}")


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """The loss unless one is given: cross-entropy of the logits [N, classes, ...] of a pair (inputs, labels)."""
    x, labels = moved(batch, next(model.parameters()).device)
    return F.cross_entropy(logits_of(model(x)), labels)


def _pairs(data: Data) -> None:
    batch = next(iter(data.batches), None)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ComparisonError(
            f"--data gives batches ({type(batch).__name__}) that are no pairs (inputs, labels), which cross-entropy needs: "
            "give --loss module:fn with fn(model, batch)"
        )
