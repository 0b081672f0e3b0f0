"""What a model costs, as closed forms of the kept counts."""

from bough.cost.energy import EnergyModel
from bough.cost.precision import PRECISIONS
from bough.cost.prices import Prices
from bough.graph import ClosedForm, Cost, closed_form, cost_of, shown

__all__ = [
    "PRECISIONS", "ClosedForm", "Cost", "EnergyModel", "Prices", "closed_form", "cost_of", "shown",
]  # fmt: skip
