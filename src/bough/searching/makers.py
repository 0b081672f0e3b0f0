"""How a candidate becomes a model that can be evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from bough.calibration import Data
from bough.cutting import cut
from bough.errors import ConflictError
from bough.graph import Graph
from bough.planning import Options, Plan, planned
from bough.planning.budget import LeastOfTied
from bough.recovery import recalibrate, refit_
from bough.supernet import Supernet


class Maker(Protocol):
    """Makes the model of a candidate: by cutting, or by selecting a subnet of a supernet."""

    def __call__(self, counts: Mapping[str, int], left_out: tuple[str, ...]) -> nn.Module:
        """Return the model that keeps `counts` units of each group and leaves out the layers `left_out`.

        The model is evaluated before the next one is made, so the same module may be returned again with other widths.
        """


@dataclass(frozen=True, slots=True)
class CutMaker:
    """Cuts the traced model, and refits or recalibrates the cut model on `data`.

    Attributes:
        graph, scores, options: of planning; `options.drop` is replaced by the candidate's layers.
        data: batches, needed by `refit` and `recalibrate`.
        example_inputs: the inputs that the model was traced with.
    """

    graph: Graph
    scores: Mapping[str, NDArray[np.float64]]
    options: Options
    data: Data | None = None
    refit: bool = False
    recalibrate: bool = False
    example_inputs: Any = None

    def plan(self, counts: Mapping[str, int], left_out: tuple[str, ...] = ()) -> Plan:
        """Return the plan of a candidate.

        Raises:
            ConflictError: the model's Python contradicts these widths.
        """
        found = planned(self.graph, self.scores, LeastOfTied(counts), replace(self.options, drop=left_out))
        changed = {n: (counts[n], k) for n, (k, _) in found.groups.items() if n in counts and counts[n] != k}
        if changed:
            name, (asked, made) = next(iter(changed.items()))
            why = found.frozen.get(name) or "; ".join(n for n in found.notes if n.startswith(name))
            raise ConflictError(f"{name} can not keep {asked} units, {made} are possible: {why}")
        return found

    def __call__(self, counts: Mapping[str, int], left_out: tuple[str, ...] = ()) -> nn.Module:
        """Return the cut model of a candidate, refitted or recalibrated."""
        plan = self.plan(counts, left_out)
        small = cut(self.graph.model, plan)
        if not plan.kept and not plan.left_out:
            return small
        if self.refit and self.data is not None:
            refit_(self.graph.model, small, plan, self.data, example_inputs=self.example_inputs)
        elif self.recalibrate and self.data is not None:
            recalibrate(small, self.data)
        return small


@dataclass(frozen=True, slots=True)
class SubnetMaker:
    """Selects subnets of a supernet, and sets their batch-norm statistics again on `data`; nothing is cut or refitted."""

    net: Supernet
    data: Data | None = None

    def plan(self, counts: Mapping[str, int], left_out: tuple[str, ...] = ()) -> Plan:
        """Return the plan that cuts the supernet to a candidate."""
        return self.net.plan(self.net.subnet(counts, drop=left_out))

    def __call__(self, counts: Mapping[str, int], left_out: tuple[str, ...] = ()) -> nn.Module:
        """Return the module of a candidate, on slices of the supernet's weights."""
        module = self.net.instance(self.net.subnet(counts, drop=left_out)).eval()
        has_statistics = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
        return recalibrate(module, self.data) if self.data is not None and has_statistics else module
