"""One short typing rule per op: `RULES` by ATen name; `pointwise` for everything torch tags as such."""

from bough.rules import contraction, indexing, normalization, pointwise, pooling, recurrent, reduction, shape
from bough.rules.context import KERNEL, RULES, Context, Notes, Reason, Rule, Typing

POINTWISE = pointwise.pointwise

__all__ = ["KERNEL", "POINTWISE", "RULES", "Context", "Notes", "Reason", "Rule", "Typing"]
del contraction, indexing, normalization, pointwise, pooling, recurrent, reduction, shape
