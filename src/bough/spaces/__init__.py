"""Index spaces: what an axis of a tensor ranges over, and how two of them become the same.

    Space = Atom(size) | Product(major, ..., minor) | Sum(first, ..., last)

An Atom is a union-find node: `link` leads to the space it has become. One index of an unlinked Atom is a *unit*.
`normal` gives the normal form: no Product directly in a Product, no Sum directly in a Sum, no space of size 1 in a
Product, and `(A + B) x K = A x K + B x K`, so that a Sum is only ever the last factor. `unify` makes two spaces the
same by their coarsest common refinement; where there is none, both are frozen. The package knows nothing of tensors.
"""

from bough.spaces.kept import Each, Indices, Kept, coordinates, count, indices, innermost, paths
from bough.spaces.refinement import unify
from bough.spaces.space import UNIT, Atom, Product, Space, Sum, concat, freeze, is_frozen, normal, product
from bough.spaces.units import unit_means, unit_positions, unit_sums

__all__ = [
    "UNIT", "Atom", "Each", "Indices", "Kept", "Product", "Space", "Sum", "concat", "coordinates", "count", "freeze",
    "indices", "innermost", "is_frozen", "normal", "paths", "product", "unify", "unit_means", "unit_positions", "unit_sums",
]  # fmt: skip
