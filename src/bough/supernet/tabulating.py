"""Find and evaluate a subnet for each of several devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from bough.calibration import Data
from bough.cost import EnergyModel
from bough.errors import BudgetError, PlanError, instead
from bough.latency import LatencyTable
from bough.planning import Allocator, Budget
from bough.recovery.training import restore_modes
from bough.supernet.extracted import recalibrated
from bough.supernet.subnet import Subnet
from bough.supernet.table import SubnetRow, SubnetTable

if TYPE_CHECKING:
    from bough.supernet.supernet import Supernet


def tabulated(
    net: Supernet, budgets: Mapping[str, Budget], tables: Mapping[str, LatencyTable],
    evaluate: Callable[[nn.Module], float] | None, data: Data | None, allocation: str | Allocator, energy: EnergyModel | None,
) -> SubnetTable:  # fmt: skip
    """Return a row for each device; see `Supernet.table`."""
    for name in tables:
        if name not in budgets:
            raise PlanError(f"tables names {name!r}, which has no budget; {instead(name, budgets)}")
    found: dict[str, Subnet] = {}
    for name, budget in budgets.items():  # all of them before anything is evaluated
        try:
            found[name] = net.within(budget, allocation=allocation, table=tables.get(name), energy=energy)
        except BudgetError as error:
            raise BudgetError(f"{name}: {error}") from None
    rows = []
    for name, subnet in found.items():
        (cost,) = net.costs([subnet], table=tables.get(name), energy=energy)
        rows.append(SubnetRow(name, subnet, cost, None if evaluate is None else metric_of(net, subnet, evaluate, data)))
    return SubnetTable(net.graph.fingerprint, tuple(rows))


def metric_of(net: Supernet, subnet: Subnet, evaluate: Callable[[nn.Module], float], data: Data | None) -> float:
    """Return the metric of a subnet in eval mode, its batch-norm statistics set to those on data, if there is any.

    The largest subnet keeps the statistics of the supernet, which are its own.
    """
    with torch.no_grad(), restore_modes(net):
        net.eval()
        with net.at(subnet) as module:
            return float(evaluate(module if module is net.model else recalibrated(module, data)))
