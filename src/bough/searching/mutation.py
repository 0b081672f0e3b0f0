"""Mutations of candidates: random ones, and ones that keep the cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bough.cost import Cost
from bough.searching.space import Choice, SearchSpace

_LONGEST = 0.25  # the largest move of a column, as a share of its steps


def mutated(space: SearchSpace, choice: Choice, rng: np.random.Generator, moves: int = 2) -> Choice:
    """Return a choice in which a few dimensions have another value; it need not meet the limits."""
    changed = choice.copy()
    for i in rng.choice(len(choice), size=min(moves, len(choice)), replace=False):
        changed[i] = _moved(space, changed, int(i), rng)
    return changed


def exchanged(space: SearchSpace, choice: Choice, rng: np.random.Generator, costs: Mapping[str, float]) -> Choice:
    """Return a choice in which some columns lose units and others get them back, as far as `costs` allow.

    Source: the level-switch mutation of Sieberling et al., 2024 (EvoPress), for widths: what one part gives, others take.

    Args:
        space: the search space.
        choice: the candidate to change.
        rng: source of the draws.
        costs: upper bounds on costs, by field of `Cost`; those of the space hold besides.
    """
    widths = len(space.columns)
    changed = choice.copy()
    if len(choice) > widths and rng.random() < 0.2:
        i = int(rng.integers(widths, len(choice)))
        changed[i] = _moved(space, changed, i, rng)
    limited = space.within(costs)
    givers = rng.permutation(widths)[: int(rng.integers(1, 4))]
    for i in givers:
        most = max(1, int(_LONGEST * space.highest[i]))
        changed[i] = min(changed[i] + int(rng.integers(1, most + 1)), space.highest[i])
    changed = limited.shrunk(changed)
    for i in rng.permutation(np.setdiff1d(np.arange(widths), givers))[: int(rng.integers(1, 4))]:
        options = np.tile(changed, (int(changed[i]) + 1, 1))
        options[:, i] = np.arange(len(options))
        changed = options[int(np.argmax(limited.feasible(options)))].copy()
    return changed


def _moved(space: SearchSpace, choice: Choice, i: int, rng: np.random.Generator) -> int:
    highest = int(space.highest[i])
    most = max(1, int(_LONGEST * highest))
    step = int(rng.integers(1, most + 1)) * (1 if rng.random() < 0.5 else -1)
    moved = int(np.clip(choice[i] + step, 0, highest))
    return moved if moved != choice[i] else int(np.clip(choice[i] - step, 0, highest))


def costs_of(space: SearchSpace, cost: Cost, minimized: list[str]) -> dict[str, float]:
    """Return the costs that an exchange keeps: those that are minimized, else those that are limited, else the MACs."""
    known = cost.to_dict()
    return {name: float(known[name]) for name in (minimized or list(space.limits) or ["macs"])}
