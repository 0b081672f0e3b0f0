"""`search`: the best plans under several limits at once, by evaluating candidates."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bough.arguments import check_arguments
from bough.calibration import Data, as_data, require_reiterable
from bough.comparing.folder import identity_of
from bough.comparing.metrics import Evaluate, measured
from bough.comparing.naming import named
from bough.cost import EnergyModel
from bough.cost.prices import Prices
from bough.cutting.cut import copied
from bough.defaults.candidates import ERRORS, WITHOUT_DATA
from bough.errors import SearchError
from bough.graph import Graph
from bough.importance import Criterion, DataCriterion, resolve_criterion, score
from bough.importance.score import with_data_reached
from bough.planning import Allocator, Budget, Options
from bough.planning.budget import priced
from bough.searching.assessment import Divergence, MeasuredCosts, measured_export, measured_latency
from bough.searching.building import search_space, subnet_space
from bough.searching.corrections import Corrections
from bough.searching.goals import Goals, check_noise, goals_of
from bough.searching.live import shown, write_front
from bough.searching.makers import CutMaker, Maker, SubnetMaker
from bough.searching.result import SearchResult
from bough.searching.space import SearchSpace
from bough.searching.start_points import START, start_points
from bough.supernet import Supernet
from bough.targeting import export_limits
from bough.tracing import trace
from bough.tracing.capture.tree import tensors_within
from bough.tracing.selection import Selection
from bough.tracing.typing.ties import Ties, tie_names

METHODS = ("nsga2", "tpe", "local", "random")
_NOT_SEARCHED = ("uniform", "on_conflict", "allocation")


def search(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Callable[[nn.Module], Any],
    *,
    budget: Budget | None = None,
    objectives: Mapping[str, str] | None = None,
    at_least: Mapping[str, float] | None = None,
    at_most: Mapping[str, float] | None = None,
    noise: Mapping[str, float] | None = None,
    trials: int = 100,
    method: str = "nsga2",
    screen: Callable[[nn.Module, float], float] | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    population: int = 20,
    start: Iterable[str | Allocator] | None = None,
    layers: Iterable[str] = (),
    importance: str | Criterion | DataCriterion | None = None,
    data: Data | Iterable[Any] | None = None,
    refit: bool | None = None,
    recalibrate: bool = False,
    make: Maker | None = None,
    ignore: Selection = (),
    only: Selection | None = None,
    tie: Ties | None = None,
    storage: str | Path | None = None,
    name: str = "search",
    heartbeat: int = 20,
    about: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: bool = False,
    **planning: Any,
) -> SearchResult:
    """Search the widths of groups, and layers in or out, for the best models under limits; `model` stays as it was.

    Candidates that miss the budget cost nothing: the closed form prices them, and they are moved to the nearest one that meets
    it. Each candidate is cut, refitted or recalibrated on `data`, and evaluated. With `data`, the divergence of its outputs
    from the dense model's is recorded, too: it decides between candidates whose metrics differ by less than a standard error,
    and guides "local". First come the plans that bough's allocators find, so the result is at least as good as they are, but
    for noise. Equal candidates are evaluated once.

    Several processes that make the same call with the same `storage` share the study: each evaluates a part of the `trials`. A
    process that is killed loses the candidate that it was evaluating, which another worker, or the next call, evaluates again.

    Args:
        model, example_inputs, ignore, only, tie: as for `trace`. Of a supernet (see `bough.supernet`) the subnets are searched:
            nothing is cut or refitted, and batch norms are recomputed on `data`; example inputs are not needed (None).
        evaluate: model -> a metric, or a dict of metrics, of data that the model is not tested on. A metric is a number, or an
            array of one value per sample (such as whether each prediction is right), whose mean is the metric.
        budget: upper bounds on costs that all candidates meet. Peak memory at int8, with flash or round_to="cortex-m", is of
            each candidate's C export (see `meet_arena`), but for supernets, of which the closed form counts.
        objectives: {metric of `evaluate`, or field of `Cost`: "max" or "min"}; a metric, such as a measured latency, takes the
            place of the cost of its name. By default the first metric is maximized, and without a budget MACs are minimized.
        at_least, at_most: {metric: bound} that a result has to meet, known only once a candidate is evaluated.
        noise: {metric: its standard error}, of metrics that are numbers; those that are arrays have it from their values. Of
            candidates within one standard error of the best, the one of least divergence is chosen; 0 turns this off.
        trials: how many candidates the study evaluates in all; more of them continue a study.
        method: "nsga2" (a genetic algorithm, for several objectives too), "tpe", "local" (mutations of the best candidates at
            constant cost) or "random".
        screen: for "local": (model, share) -> an estimate of the first objective on this share of the evaluation data. Eight
            mutations are then halved by it, and the best one is evaluated.
        measure: model -> seconds, for a budget of latency with `table`: each candidate is measured, too, and has to meet the
            budget as measured (a percentage is of the dense model as measured); the table is corrected by what was measured,
            so that later candidates, and the start points once more, are planned for what the budget asks.
        population: candidates per generation of "nsga2"; half as many are drawn at random at first by "tpe".
        start: allocators whose plans come first, by default "uniform", "global", "greedy" and "knapsack", and "error" if the
            criterion's scores are errors; () for none.
        layers: names or patterns of layers (see `graph.layers`) that candidates may leave out.
        importance: the criterion that chooses units, as for `score`; by default "group", and with data the errors of OBS.
        data: batches that the criterion, the refit and the recalibration read.
        refit: whether each candidate is refitted, as by `refit`; None refits where there is data.
        recalibrate: without a refit, recomputes the statistics of batch norms on `data`.
        make: (counts, left_out) -> model, in place of cutting, such as a supernet's subnet.
        storage: a folder for workers on one machine, or an address such as "postgresql://user@host/name" for several; None
            keeps the study in memory.
        name: of the study; a storage may hold several.
        heartbeat: seconds between the signs of life of a worker in a database; it counts as dead after three of them.
        about: what distinguishes this search from others besides model, weights and options, such as the name of the data.
        seed: of all that is drawn.
        progress: show a bar, and the front as it grows.
        planning: other options of `plan`: `round_to`, `minimum`, `drop`, `exact_only`, `ragged`, `table`, `energy`.

    Raises:
        BudgetError: no candidate meets the budget.
        SearchError: an unknown option, objective or bound; Optuna is not installed; the storage can not be reached, or holds a
            study of another model or call; the first ten candidates all failed.
        PlanError, TraceError: as the stages do.

    Source: Deb et al., 2002 (NSGA-II); Bergstra et al., 2011 (TPE); Breiman et al., 1984 (the one-standard-error rule).

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> x = torch.randn(256, 4)
        >>> def closeness(small):
        ...     return -float((small(x) - net(x)).square().mean().detach())
        >>> found = bough.search(net, x[:1], closeness, trials=6, data=x.split(64))
        >>> len(found.points), found.front[0].cost["macs"] >= found.front[-1].cost["macs"]
        (6, True)
        >>> found.plan(found.best).groups == {"0": (found.best.counts["0"], 16)}
        True
    """
    check_arguments(search, locals())
    _check(method, trials, population, heartbeat, seed, screen, planning)
    batches = None if data is None else as_data(data, "search")
    if batches is not None:
        require_reiterable(batches)
    if (refit or recalibrate) and batches is None:
        raise SearchError("search(refit=True) and search(recalibrate=True) need data: unlabelled batches, such as data=loader")
    _require_optuna()
    options = Options(**planning)
    if measure is not None and (budget is None or budget.latency is None or options.table is None):
        raise SearchError("measure= is for a budget of latency: give budget=bough.Budget(latency=...) and table=")
    prices = _prices(budget, options, [n for n in objectives or () if n in ("energy", "flash")])
    fits = batches is not None and not isinstance(model, Supernet) if refit is None else refit
    maker: Maker
    checks, said = list[MeasuredCosts](), tuple[str, ...]()
    if isinstance(model, Supernet):
        given = [importance, refit or None, recalibrate or None, make, ignore or None, only, tie, layers or None]
        _check_supernet(given, planning)
        graph, criterion, frozen = model.graph, "of the supernet", dict(model.frozen)
        space, maker = subnet_space(model, budget=budget, prices=prices), SubnetMaker(model, batches)
        start = START if start is None else start
    else:
        resolved = resolve_criterion(importance or (WITHOUT_DATA if batches is None else ERRORS).importance)
        graph = with_data_reached(trace(model, example_inputs, ignore=ignore, only=only, tie=tie), [resolved])
        scores = score(graph, resolved, batches)
        criterion, errors = named(resolved), bool(getattr(resolved, "gives_errors", False))
        within, checks, said = _export_checks(graph, budget, options)
        space, frozen = search_space(graph, scores, options, budget=within, prices=prices, layers=layers, errors=errors)
        maker = make or CutMaker(graph, scores, options, batches, fits, recalibrate, example_inputs)
        start = ((*START, "error") if errors else START) if start is None else start
    settings = {
        "evaluate": _place(evaluate), "importance": criterion, "refit": str(fits), "recalibrate": str(recalibrate),
        "budget": str(budget), "layers": str(space.optional), "space": _digest(space), "make": _place(make),
        "measure": _place(measure),
        "tie": str(sorted(map(str, tie_names(graph.model, tie or {}).items()))), **(about or {}),
    }  # fmt: skip
    identity = identity_of(graph, list(tensors_within([(c.args, c.kwargs) for c in graph.calls])), settings)
    if measure is not None:
        assert budget is not None
        checks.append(measured_latency(measure, graph.model, budget, space.pricing.original))
    diverges = None if batches is None or make is not None else Divergence(graph, batches)
    run = Run(
        space, maker, evaluate, identity, trials, method, screen, population, tuple(start), seed, progress, tuple(checks),
        diverges, dict(noise or {}),
    )  # fmt: skip
    return run_search(
        run, graph, lambda metrics: goals_of(
            objectives, at_least, at_most, metrics, [*space.pricing.original.to_dict()], budget is not None
        ), storage, name, heartbeat, frozen, (*prices.notes(), *said),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """A search, apart from where its study is kept.

    Attributes:
        space: what is searched.
        maker: candidate -> model.
        evaluate, trials, method, screen, population, start, seed, progress: see `search`.
        identity: what distinguishes the search from others.
        checks: costs that are measured of each candidate's model, and their bounds.
        diverges: model -> how far its outputs are from the dense model's.
        noise: {metric: standard error}, see `search`.
    """

    space: SearchSpace
    maker: Maker
    evaluate: Evaluate
    identity: Mapping[str, str]
    trials: int
    method: str = "nsga2"
    screen: Callable[[nn.Module, float], float] | None = None
    population: int = 20
    start: tuple[str | Allocator, ...] = START
    seed: int = 0
    progress: bool = False
    checks: tuple[MeasuredCosts, ...] = ()
    diverges: Divergence | None = None
    noise: Mapping[str, float] = field(default_factory=dict)


def run_search(
    run: Run, graph: Graph, goals_for: Callable[[tuple[str, ...]], Goals], storage: str | Path | None, name: str,
    heartbeat: int, frozen: Mapping[str, str], notes: tuple[str, ...] = (),
) -> SearchResult:  # fmt: skip
    """Do the work of `search` on a search space: as one worker of a study, until the study is done."""
    from bough.searching.proposals import Proposals
    from bough.searching.shared_study import SharedStudy
    from bough.searching.storages import opened
    from bough.searching.worker import Worker

    with opened(storage, heartbeat) as where:
        dense = measured(run.evaluate, copied(graph.model, lambda _, tensor, __: tensor.clone())[0])
        goals = goals_for(tuple(dense.values))
        minimized = goals.costs(list(dense.values))
        check_noise(run.noise, list(dense.values))
        _, skipped = start_points(run.space, run.start, minimized)
        proposals = Proposals(
            run.space, goals, minimized, run.method, run.seed, run.population,
            lambda space: start_points(space, run.start, minimized)[0], Corrections(run.space, run.checks),
        )  # fmt: skip
        identity = {
            **run.identity,
            "method": run.method,
            "seed": str(run.seed),
            **{k: str(v) for k, v in goals.to_dict().items()},
        }
        study = SharedStudy(where, name, identity, goals, run.space, proposals)
        original = run.space.pricing.original.to_dict()
        folder = None if storage is None or "://" in str(storage) else Path(storage)

        def result() -> SearchResult:
            said = (*notes, *skipped)
            return SearchResult(study.points(), goals, dense.values, original, run.maker, study.lost(), frozen, said, run.noise)

        with shown(result, run.trials, run.progress) as update:

            def after() -> None:
                update()
                if folder is not None:
                    write_front(folder, result())

            Worker(
                where, study, run.space, goals, proposals, run.maker, run.evaluate, tuple(dense.values), run.trials, run.screen,
                after, run.checks, run.diverges,
            ).run()  # fmt: skip
        found = result()
        if folder is not None:
            write_front(folder, found)
    return found


def _check(
    method: str, trials: int, population: int, heartbeat: int, seed: int, screen: object, planning: Mapping[str, Any]
) -> None:  # fmt: skip
    if method not in METHODS:
        raise SearchError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    for option, value, least in (
        ("trials", trials, 1),
        ("population", population, 2),
        ("heartbeat", heartbeat, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise SearchError(f"{option}={value}: must be at least {least}")
    if screen is not None and method != "local":
        raise SearchError(f"screen= is for method='local', not for method={method!r}")
    known = [f for f in Options.__dataclass_fields__ if f not in (*_NOT_SEARCHED, "ignore", "only")]
    for option in planning:
        if option not in known:
            raise SearchError(f"search has no option {option!r}: those of planning are {', '.join(known)}")


def _check_supernet(given: list[Any], planning: Mapping[str, Any]) -> None:
    """Raise SearchError for options that a supernet has decided."""
    other = [f for f in planning if f not in ("table", "energy")]
    if other or any(x is not None for x in given):
        option = other[0] if other else "importance, refit, recalibrate, make, ignore, only, tie and layers"
        raise SearchError(
            "a supernet has decided its widths, layers and order of units, and its subnets are not refitted: leave out "
            f"{option}; give them to bough.supernet"
        )


def _prices(budget: Budget | None, options: Options, wanted: list[str]) -> Prices:
    """Return the costs that are known: those that the budget bounds, and those that are objectives."""
    energy = options.energy
    if "energy" in wanted and energy is None:
        energy = EnergyModel.of((budget.precision if budget else None) or "float32")
    flash = "flash" in wanted or (budget is not None and budget.flash is not None)
    if budget is None:
        return Prices(None, options.table, energy, flash)
    found = priced(budget, options.table, energy)
    return Prices(found.precision, found.table, found.energy, flash)


def _export_checks(
    graph: Graph, budget: Budget | None, options: Options
) -> tuple[Budget | None, list[MeasuredCosts], tuple[str, ...]]:  # fmt: skip
    """Return the budget for the closed form, the checks of candidates' C exports where the budget is for these, and notes."""
    limits, notes = (None, ()) if budget is None else export_limits(graph, budget, options)
    if limits is None:
        return budget, [], notes
    return limits.budget, [measured_export(graph, limits)], notes


def _require_optuna() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise SearchError("a search needs Optuna: pip install 'bough[search]'")


def _place(function: Any) -> str:
    """Where a function is from, the same in every process."""
    return "none" if function is None else f"{getattr(function, '__module__', '')}:{named(function)}"


def _digest(space: SearchSpace) -> str:
    """Return what distinguishes a space from others: its dimensions with their numbers of choices, and the limits."""
    from hashlib import sha256

    widths: list[NDArray[np.int64]] = [c.counts for c in space.columns]
    text = f"{space.names} {[w.tolist() for w in widths]} {space.always_out} {sorted(space.limits.items())}"
    return sha256(text.encode()).hexdigest()[:16]
