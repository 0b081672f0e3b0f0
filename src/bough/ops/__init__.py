"""What bough knows about each operator of torch: `spec(name)` gives its `OpSpec`; one file per family registers them."""

from bough.ops import (
    attention,
    complex,
    convolution,
    distance,
    embedding,
    indexing,
    linalg,
    matmul,
    normalization,
    pointwise,
    pooling,
    recurrent,
    reduction,
    scattering,
    shape,
    shape_arguments,
    vision,
)
from bough.ops.context import KERNEL, Context, Notes, Reason, Typing
from bough.ops.matmul import einsum_letters
from bough.ops.rewriting import Site, Types
from bough.ops.spec import OpSpec, Place, base_name, spec

POINTWISE = pointwise.pointwise

__all__ = [
    "KERNEL", "POINTWISE", "Context", "Notes", "OpSpec", "Place", "Reason", "Site", "Types", "Typing", "base_name",
    "einsum_letters", "spec",
]  # fmt: skip
del attention, complex, convolution, distance, embedding, indexing, linalg, matmul, normalization, pointwise, pooling
del recurrent, reduction, scattering, shape, shape_arguments, vision
