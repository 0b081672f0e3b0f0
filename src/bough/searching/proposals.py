"""Which candidate comes next: Optuna's samplers, made to propose candidates that meet the budget and are new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from bough.searching.corrections import Corrections, MeasuredCandidate
from bough.searching.goals import Goals
from bough.searching.mutation import costs_of, exchanged, mutated
from bough.searching.pareto import pareto
from bough.searching.space import Choice, SearchSpace
from bough.searching.storages import MADE
from bough.searching.surrogate import Surrogate

FOUND = "found"  # the user attribute of a trial with what came of it
_LOOKS = (1, 4, 16)  # mutations that are compared by their scores, before one is evaluated
_BY_SURROGATE = 0.5  # share of the local search's proposals that are the surrogate's own, while it has new ones
_CORRECTED = 3  # times as many start points as without measurements, at most
_TRIES = 200  # proposals that are known already, before the space is gone through one by one


class Proposals(BaseSampler):
    """A sampler that proposes, in this order: candidates of dead workers, start points, and what the method draws.

    What is drawn is moved to the nearest candidate that meets the budget, so nothing that misses it is evaluated; where no cost
    is an objective, it is also grown until the budget is used. Candidates that the study has are not proposed again.

    The draws for the n-th candidate of a study depend on the seed and n alone: workers draw different ones, and a resumed study
    draws what it would have drawn.
    """

    def __init__(
        self, space: SearchSpace, goals: Goals, minimized: list[str], method: str, seed: int, population: int,
        starts: Callable[[SearchSpace], Sequence[tuple[str, Choice]]], corrections: Corrections,
    ) -> None:  # fmt: skip
        self._goals, self._minimized, self._corrections = goals, minimized, corrections
        self._method, self._seed, self._population, self._starts = method, seed, population, starts
        self._given = self._space = corrections.space([])
        self._started = {self._given: list(starts(self._given))}
        self.distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, int(n)) for name, n in zip(space.names, space.highest, strict=True)
        }
        self.preferred: list[Choice] = []
        self.origin = ""
        self.used_up = False

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        self._space = self._corrected(others)
        known = known_keys(others)
        rng = self.rng(len(known))
        drawn = self._inner(rng).sample_relative(study, trial, search_space)  # also sets the generation of NSGA-II
        choice = self._next(others, known, drawn, rng)
        return dict(zip(self._space.names, map(int, choice), strict=True))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError(f"{param_name} is no dimension of the space")

    def choice_of(self, params: dict[str, Any]) -> Choice:
        """Return the choice that a trial's parameters stand for."""
        return np.array([params[name] for name in self._space.names], dtype=np.int64)

    def rng(self, index: int, purpose: int = 0) -> np.random.Generator:
        """Return the source of draws of the candidate with this index."""
        return np.random.default_rng(np.random.SeedSequence([self._seed, index, purpose]))

    def neighbour(self, trials: Sequence[FrozenTrial], rng: np.random.Generator) -> Choice:
        """Return a mutation, at constant cost, of one of the best candidates so far; a random candidate where there is none.

        Of one, four or sixteen mutations with the same layers, the one is taken of which the surrogate expects the least
        divergence; half of the time it is the surrogate's own choice of widths, where that is new.
        """
        best = self._best(trials)
        if not best:
            return self._fit(self._space.draw(rng), rng)
        parent = self.choice_of(best[int(rng.integers(len(best)))].params)
        limits, known, layers = self._limits_beside(parent, rng), known_keys(trials), slice(len(self._space.columns), None)
        children = [self._child(parent, limits, rng) for _ in range(int(rng.choice(_LOOKS)))]
        surrogate = self._surrogate(trials)
        alike = [c for c in children if (c[layers] == children[0][layers]).all()]
        new = [c for c in alike if self._space.candidate(c).key not in known]
        if rng.random() < _BY_SURROGATE and not parent[layers].any():
            least = surrogate.least(limits if self._minimized or not self._space.limits else self._space.limits)
            if least is not None and self._space.candidate(least).key not in known:
                return least
        return min(new or alike, key=surrogate.loss)

    def _limits_beside(self, parent: Choice, rng: np.random.Generator) -> dict[str, float]:
        """Return the costs of a candidate as limits; where costs are objectives, sometimes lower or higher ones."""
        costs = costs_of(self._space, self._space.cost(parent), self._minimized)
        if self._minimized:
            factor = float(rng.choice([1.0, 1.0, 0.9, 0.8, 1.1, 1.25]))
            costs = {name: value * factor for name, value in costs.items()}
        bounded = self._space.within(costs)
        return bounded.limits if bounded.feasible(bounded.highest)[0] else self._space.limits

    def _child(self, parent: Choice, limits: dict[str, float], rng: np.random.Generator) -> Choice:
        child = exchanged(self._space, parent, rng, limits)
        return child if self._minimized or not self._space.limits else self._space.grown(child, rng)

    def _next(self, others: list[FrozenTrial], known: set[str], drawn: dict[str, Any], rng: np.random.Generator) -> Choice:
        for t in others:
            if is_lost(t) and t.user_attrs[MADE]["key"] not in known:
                self.origin = t.user_attrs[MADE]["origin"]
                return self.choice_of(t.params)
        for origin, choice in self._start_points(others):
            if self._space.candidate(choice).key not in known:
                self.origin = origin
                return choice
        self.origin = self._method
        for choice in self.preferred:
            if self._space.candidate(choice).key not in known:
                return choice
        choice = self.neighbour(others, rng) if self._method == "local" else self._completed(drawn, rng)
        for i in range(_TRIES):
            if self._space.candidate(choice).key not in known:
                return choice
            near = mutated(self._space, choice, rng, 1 + i // 10) if i < _TRIES // 2 else self._space.draw(rng)
            choice = self._fit(near, rng)
        rest = (c for c in self._space.every() if self._space.candidate(c).key not in known)
        choice, self.used_up = next(((c, False) for c in rest), (choice, True))
        return choice

    def _completed(self, drawn: dict[str, Any], rng: np.random.Generator) -> Choice:
        """Return the drawn choice, with random values where the sampler left a dimension open, within the budget."""
        choice = self._space.draw(rng)
        for i, name in enumerate(self._space.names):
            choice[i] = drawn.get(name, choice[i])
        return self._fit(choice, rng)

    def _fit(self, choice: Choice, rng: np.random.Generator) -> Choice:
        fit = self._space.shrunk(choice)
        return fit if self._minimized or not self._space.limits else self._space.grown(fit, rng)

    def _best(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        good = [t for t in trials if t.state == TrialState.COMPLETE and FOUND in t.user_attrs]
        met = [t for t in good if all(v <= 0 for v in t.user_attrs[FOUND]["violations"].values())]
        good = met or good
        losses = [self._goals.losses(t.user_attrs[FOUND]["values"]) for t in good]
        if len(self._goals.directions) == 1:  # the best few, so that the search does not hang on one
            first = list(np.argsort([x[0] for x in losses], kind="stable")[:3])
            far = [_divergence(t) for t in good]
            near = [i for i in np.argsort(far, kind="stable")[:3] if np.isfinite(far[i])]  # a metric of few samples is noisy
            return [good[i] for i in dict.fromkeys([*first, *near])]
        return [good[i] for i in pareto(losses)]

    def _surrogate(self, trials: Sequence[FrozenTrial]) -> Surrogate:
        done = [t for t in trials if np.isfinite(_divergence(t))]
        return Surrogate.of(self._space, [self.choice_of(t.params) for t in done], [_divergence(t) for t in done])

    def _corrected(self, trials: Sequence[FrozenTrial]) -> SearchSpace:
        """Return the space whose predicted costs are corrected by those that were measured."""
        known = [(t, t.user_attrs[FOUND]) for t in trials if t.user_attrs.get(FOUND, {}).get("measured")]
        return self._corrections.space(
            [
                MeasuredCandidate(self._given.candidate(self.choice_of(t.params)).left_out, found["cost"], found["measured"])
                for t, found in known
            ]
        )

    def _start_points(self, trials: Sequence[FrozenTrial]) -> Sequence[tuple[str, Choice]]:
        """Return the start points, then those for the costs that measurements have corrected."""
        first = self._started[self._given]
        tried = sum(str(t.user_attrs.get(MADE, {}).get("origin", "")).startswith("start") for t in trials)
        if self._space is self._given or tried < len(first) or tried >= _CORRECTED * max(len(first), 1):
            return first
        if self._space not in self._started:
            names = ", ".join(self._corrections.names)
            self._started[self._space] = [(f"{origin}, {names} corrected", c) for origin, c in self._starts(self._space)]
        return [*first, *self._started[self._space]]

    def _inner(self, rng: np.random.Generator) -> BaseSampler:
        seed = int(rng.integers(2**31))
        if self._method == "nsga2":
            return NSGAIISampler(population_size=self._population, seed=seed)
        if self._method == "tpe":
            return TPESampler(seed=seed, n_startup_trials=self._population // 2)
        return RandomSampler(seed=seed)


def is_lost(trial: FrozenTrial) -> bool:
    """Return whether a worker died before the trial was evaluated."""
    return trial.state == TrialState.FAIL and FOUND not in trial.user_attrs and MADE in trial.user_attrs


def _divergence(trial: FrozenTrial) -> float:
    """Return how far a trial's outputs were from the dense model's; infinity where that is not known."""
    value = trial.user_attrs.get(FOUND, {}).get("divergence")
    return float("inf") if value is None else float(value)


def known_keys(trials: Sequence[FrozenTrial]) -> set[str]:
    """Return the keys of the candidates that were evaluated, or are being evaluated."""
    live = [t for t in trials if MADE in t.user_attrs and not is_lost(t)]
    return {t.user_attrs[MADE]["key"] for t in live}
