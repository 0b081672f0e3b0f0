"""One short typing rule per op: `RULES` by ATen name; `pointwise` for everything torch tags as such."""

from bough.rules import (
    complex,
    contraction,
    distance,
    embedding,
    indexing,
    linalg,
    normalization,
    pointwise,
    pooling,
    recurrent,
    reduction,
    scattering,
    shape,
    vision,
)
from bough.rules.context import KERNEL, RULES, Context, Notes, Reason, Rule, Typing

POINTWISE = pointwise.pointwise

__all__ = ["KERNEL", "POINTWISE", "RULES", "Context", "Notes", "Reason", "Rule", "Typing"]
del complex, contraction, distance, embedding, indexing, linalg, normalization, pointwise, pooling, recurrent, reduction
del scattering, shape, vision
