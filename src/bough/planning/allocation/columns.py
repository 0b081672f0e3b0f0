"""What can be removed, in steps: groups tied by the model's Python form one `Column`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

from bough.errors import PlanError
from bough.graph import Group, GroupKind

_NOTHING = 1e-12

Scores = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False, slots=True)
class Column:
    """Tied groups and the widths that they may have.

    `counts` [steps + 1, groups]: units that remain after so many steps. `drops` [steps, groups]: the summed scores of the
    units that each step removes, the lowest first. `highest` [steps, groups]: the highest score among the units gone after
    each step. `means` [groups]: the mean magnitude of a unit's score.
    """

    groups: tuple[Group, ...]
    counts: NDArray[np.int64]
    drops: NDArray[np.float64]
    highest: NDArray[np.float64]
    means: NDArray[np.float64]

    @property
    def steps(self) -> int:
        return len(self.drops)

    def losses(self, relative: bool) -> NDArray[np.float64]:
        """What each step loses [steps], summed over the tied groups: the importance it removes, in the units of the scores.

        `relative`, so that scores of different groups need not be comparable: -log of the share that it leaves of the
        importance that was there, once for each reader of the group. What a net keeps, layer after layer, then multiplies;
        the last units of a group are never cheap, as they are not where the shares themselves are added.
        """
        if not relative:
            return np.asarray(self.drops.sum(axis=1))
        gone = np.cumsum(self.drops, axis=0) / (self.means * self.counts[0])
        left = np.concatenate([np.ones((1, len(self.groups))), 1.0 - gone])
        readers = np.array([g.readers for g in self.groups])
        return np.asarray(-np.diff(np.log(np.maximum(left, _NOTHING)), axis=0) @ readers)

    def ranks(self, relative: bool) -> NDArray[np.float64]:
        """The rank [steps] of each step: the mean score of the units it removes, averaged over the tied groups."""
        each = self.drops / -np.diff(self.counts, axis=0)
        return np.maximum.accumulate((each / self.means if relative else each).mean(axis=1))


@dataclass(frozen=True, slots=True)
class Allowed:
    """The widths that groups may have.

    `round_to`: widths that are cut are multiples of this (heads, counted one by one, excepted). `least`: least units kept, by
    group name (1 unless given). `steps`: into how many equal ones the units of some groups may be divided at the most.
    `refused`: counts that the model's Python contradicts, by group name.
    """

    round_to: int = 1
    least: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def widths(self, groups: Sequence[Group]) -> NDArray[np.int64]:
        """The counts [widths, groups] that tied groups may have, from all units down."""
        parts = gcd(*(g.size for g in groups), *(self.steps.get(g.name, 0) for g in groups))
        sizes = np.array([g.size // parts for g in groups])
        kept = np.arange(parts, 0, -1)
        allowed = np.ones(len(kept), dtype=bool)
        for g, unit in zip(groups, sizes, strict=True):
            allowed &= kept * unit >= min(max(g.least, self.least.get(g.name, 1)), g.size)
            step = g.multiple if g.kind is GroupKind.HEAD else lcm(g.multiple, self.round_to)
            allowed &= (kept * unit) % step == 0
            allowed &= ~np.isin(kept * unit, [*self.refused.get(g.name, ())])
        allowed[0] = True
        return np.asarray(kept[allowed][:, None] * sizes[None, :])


def columns(classes: Sequence[Sequence[Group]], scores: Scores, allowed: Allowed | None = None) -> list[Column]:
    """One column per class of tied groups (which are cut in proportion) that has a width to choose.

    Args:
        classes: groups, tied ones together.
        scores: one array [units] per group name.
        allowed: the widths to choose from; all unless given.

    Raises:
        PlanError: scores that are missing or of a wrong shape.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> column = columns([graph.groups], bough.score(graph, "l2"))[0]
        >>> column.counts[:, 0].tolist()
        [8, 7, 6, 5, 4, 3, 2, 1]
    """
    result = []
    for groups in classes:
        counts = (allowed or Allowed()).widths(groups)
        if len(counts) > 1:
            each = [np.sort(unit_scores(scores, g)) for g in groups]
            gone = counts[0] - counts
            drops = [np.diff(np.concatenate([[0.0], np.cumsum(s)])[n]) for s, n in zip(each, gone.T, strict=True)]
            highest = [s[n[1:] - 1] for s, n in zip(each, gone.T, strict=True)]
            means = [float(np.mean(np.abs(s))) or 1.0 for s in each]
            result.append(Column(tuple(groups), counts, np.stack(drops, axis=1), np.stack(highest, axis=1), np.array(means)))
    return result


def unit_scores(scores: Scores, group: Group) -> NDArray[np.float64]:
    """Return the scores of a group's units as float64 [units].

    Args:
        scores: one array [units] per group name.
        group: whose scores are looked up.

    Raises:
        PlanError: they are missing, of a wrong shape or type, NaN or infinite.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> unit_scores({"0": [1, 2, 3, 4, 5, 6, 7, 8]}, graph.groups[0]).dtype
        dtype('float64')
    """
    if group.name not in scores:
        raise PlanError(f"scores has no {group.name!r}: give one array [{group.size}] for this group")
    given = np.asarray(scores[group.name])
    if given.dtype.kind not in "biuf":
        raise PlanError(f"scores[{group.name!r}] holds no real numbers: give one array [{group.size}] for this group")
    given = given.astype(np.float64, copy=False)
    if given.shape != (group.size,):
        raise PlanError(f"scores[{group.name!r}] has shape {given.shape}, and the group has {group.size} units")
    if not np.isfinite(given).all():
        what = "NaN" if np.isnan(given).any() else "an infinite score"
        raise PlanError(f"scores[{group.name!r}] holds {what}: the weights or the data that it was computed from may")
    return given
