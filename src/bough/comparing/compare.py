"""`compare`: criteria, allocations and budgets, each with each."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bough.arguments import check_arguments
from bough.calibration import Data, Loss, as_data
from bough.calls import FORWARD, as_calls
from bough.comparing.comparison import Comparison
from bough.comparing.folder import Folder, identity_of
from bough.comparing.metrics import Evaluate
from bough.comparing.named_criteria import NamedCriterion, named_criteria
from bough.comparing.naming import Many, budget_name, by_name, named
from bough.comparing.rows import DENSE, Row
from bough.comparing.run import Run, Scored
from bough.errors import ComparisonError
from bough.importance import Criterion, DataCriterion
from bough.importance.score import with_data_reached
from bough.planning import Allocator, Budget, OnConflict, plan
from bough.planning.allocation import allocator
from bough.planning.budget import priced
from bough.storage import exclusive
from bough.tracing import trace
from bough.tracing.capture.tree import tensors_within
from bough.tracing.selection import Selection, as_names, selectors
from bough.tracing.typing.ties import Ties, tie_names

_OWN = ("graph", "scores", "budget", "keep", "allocation", "ignore", "only")  # arguments of `plan` that are not for `planning`


def compare(
    model: nn.Module,
    example_inputs: Any,
    criteria: Many[str | Criterion | DataCriterion],
    budgets: Many[Budget],
    evaluate: Evaluate,
    *,
    allocations: Many[str | Allocator] = ("global",),
    seeds: Sequence[int] = (0,),
    data: Data | Iterable[Any] | None = None,
    loss: Loss | None = None,
    refit: bool = False,
    ignore: Selection = (),
    only: Selection | None = None,
    tie: Ties | None = None,
    folder: str | Path | None = None,
    about: Mapping[str, str] | None = None,
    lower_is_better: bool = False,
    progress: bool = False,
    **planning: Any,
) -> Comparison:
    """Cuts `model` by every criterion, with every allocation, to every budget, and evaluates each; `model` stays as it was.

    Random is always among the criteria. It and others that draw (they have a field `seed`) run under every seed; the rest
    give the same each time and run once. Units are scored once per criterion and seed. A row that fails, be it in scoring,
    planning or evaluating, is kept with its error and does not stop the others; the dense model must not fail.

    Args:
        model, example_inputs, ignore, only, tie: as for `trace`.
        criteria: names (see `bough.importance.CRITERIA`) or criteria, one or several; {name: criterion} gives them names of
            their own in the table.
        budgets: what may remain; likewise one, several, or {name: budget}.
        evaluate: model -> a metric (a number, or an array of one value per sample, whose mean counts), or a dict of metrics;
            sorted and plotted by the first. It is given models of its own, so it may train them.
        allocations: names or allocators, as for `plan`, or {name: allocator}.
        planning: other options of `plan`, such as `round_to=8`.
        data: what criteria, and with `refit` the refit, read: batches that can be gone through again.
        loss: (model, batch) -> the mean loss, for criteria named that need one.
        refit: solve the cut models' weights again before they are evaluated.
        folder: where the rows are kept. The same call again makes only the rows that are not there, and the lists of
            criteria, allocations, budgets and seeds may grow. Another model, other weights or options are an error; other
            data, or another `evaluate` of the same name, is not noticed: say in `about` what sets this run apart.

    Raises:
        ComparisonError: before anything is run: a criterion lacks data or a loss, an option that `plan` does not know, the
            folder holds another run. While it runs: `evaluate` gives no number for the dense model.
        BoughError: as for `trace`, and unknown names.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> x = torch.randn(256, 4)
        >>> def error(small):
        ...     return {"error": float((small(x) - net(x)).square().mean().detach())}
        >>> budget = bough.Budget(params="50%")
        >>> found = bough.compare(net, x[:1], ["l2", "wanda"], [budget], error, data=x.split(64), lower_is_better=True)
        >>> [row.criterion for row in found.rows], found.best(budget).kept("params") <= 0.5
        (['dense', 'l2', 'wanda', 'random'], True)
    """
    check_arguments(compare, locals())
    batches = _again(data)
    if refit and batches is None:
        raise ComparisonError("compare(refit=True) needs data: unlabelled batches, such as data=loader (--data)")
    entrants = named_criteria(criteria, seeds, loss, batches)
    ways = {name: allocator(way) for name, way in by_name("allocations", allocations).items()}
    bounds = by_name("budgets", budgets, budget_name)
    _check(planning, refit, bounds.values())
    left, selected = selectors(ignore, "ignore"), None if only is None else selectors(only, "only")
    graph = trace(model, example_inputs, ignore=left, only=selected, tie=tie)
    options = {"refit": refit, "ignore": sorted(as_names(graph.model, left, "ignore")), **planning}
    if selected is not None:
        options["only"] = sorted(as_names(graph.model, selected, "only"))
    calls = as_calls(example_inputs)
    if len(calls) > 1 or calls[0].method != FORWARD:
        options["calls"] = list(map(str, calls))
    graph = with_data_reached(graph, (c.criterion for c in entrants))
    if tie:
        options["tie"] = sorted(map(str, tie_names(graph.model, tie).items()))
    identity = {
        "evaluate": _place(evaluate),
        "loss": _place(loss),
        **{k: named(v) for k, v in options.items()},
        **(about or {}),
    }
    run = Run(graph, example_inputs, evaluate, batches, refit, planning, ways, bounds)
    cases = [(c, Row(c.name, way, budget, c.seed)) for c in entrants for way in ways for budget in bounds]
    with exclusive(None if folder is None else Path(folder), ComparisonError):
        kept = Folder(folder, identity_of(graph, list(tensors_within([(c.args, c.kwargs) for c in calls])), identity))
        _fill(kept, run, cases, progress)
    return Comparison(tuple(kept.done[row.key] for row in (Row(DENSE), *(row for _, row in cases))), lower_is_better)


def _fill(kept: Folder, run: Run, cases: Sequence[tuple[NamedCriterion, Row]], progress: bool) -> None:
    """Makes the rows that are not there; the scores of one criterion and seed at a time are kept."""
    from rich.progress import track  # a third of the time that importing bough would take

    if Row(DENSE).key not in kept.done:
        kept.add(run.dense())
    metrics = list(kept.done[Row(DENSE).key].metrics)
    missing = [(entry, row) for entry, row in cases if row.key not in kept.done]
    scored: Scored | None = None
    for entry, row in track(missing, "compare") if progress else missing:
        if scored is None or scored.entry is not entry:
            scored = run.scored(entry)
        kept.add(run.row(row, scored, metrics))


def _again(data: Data | Iterable[Any] | None) -> Data | None:
    if data is None:
        return None
    if as_data(data, "compare").once:
        raise ComparisonError(
            "the data can be gone through once only, and each criterion reads it: give a list or a DataLoader"
        )
    return as_data(data)


def _place(function: Any) -> str:
    """Where a function is from, the same in every process."""
    return "none" if function is None else f"{getattr(function, '__module__', '')}:{named(function)}"


def _check(planning: Mapping[str, Any], refit: bool, budgets: Collection[Budget]) -> None:
    options = [p for p in inspect.signature(plan).parameters if p not in _OWN]
    unknown = [k for k in planning if k not in options]
    if unknown:
        raise ComparisonError(f"compare and plan have no option {unknown[0]!r}: those of plan are {', '.join(options)}")
    if refit and planning.get("on_conflict") == OnConflict.REBUILD:
        raise ComparisonError("refit solves for weights of the model's own layers: use on_conflict='freeze' or 'raise'")
    for budget in budgets:
        priced(budget, planning.get("table"), planning.get("energy"))
