"""What a model costs, as closed forms of the kept counts."""

from bough.cost.closed_form import ClosedForm, closed_form, cost_of
from bough.cost.cost import Cost, shown
from bough.cost.energy import EnergyModel
from bough.cost.precision import PRECISIONS
from bough.cost.prices import Prices

__all__ = [
    "PRECISIONS", "ClosedForm", "Cost", "EnergyModel", "Prices", "closed_form", "cost_of", "shown",
]  # fmt: skip
