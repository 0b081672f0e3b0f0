"""What a model costs, as closed forms of the kept counts."""

from bough.cost.closed_form import ClosedForm, Cost, closed_form, cost_of

__all__ = ["ClosedForm", "Cost", "closed_form", "cost_of"]
