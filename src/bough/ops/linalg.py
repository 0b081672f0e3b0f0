"""Functions of whole matrices: all of their rows and columns go into each number that comes out."""

from __future__ import annotations

from typing import Any

from bough.ops.context import Context, Typing, argument
from bough.ops.pointwise import pointwise
from bough.ops.spec import rule

_MIXED = "mixed by a function of whole matrices"


@rule("linalg_inv_ex", "linalg_cholesky_ex", "cholesky", "cholesky_inverse", "linalg_eigh", "_linalg_eigh", "linalg_eig",
      "_linalg_eigvals", "linalg_eigvals", "_linalg_svd", "linalg_qr", "linalg_lu", "linalg_lu_factor_ex", "_linalg_det",
      "_linalg_slogdet", "linalg_matrix_exp", "linalg_householder_product", "linalg_pinv", "linalg_ldl_factor_ex",
      "lu_unpack", "geqrf", "linalg_lstsq", "orgqr", "ormqr", "inverse")  # fmt: skip
def _whole(c: Context, call: Any, result: Any) -> Any:
    """Only axes of a batch of matrices pass."""
    x = c.of(call.args[0])
    given = [c.of(t) for t in call.args if hasattr(t, "dim")]
    for axis in (a for t in given for a in (t.axes if t is not given[0] else t.axes[-2:])):
        c.freeze(axis, _MIXED)
    batch = x.axes[:-2]
    c.notes.undefined.extend(a for a, n in zip(batch, x.null, strict=False) if n)  # a matrix of zeros has no inverse

    def typed(r: Any) -> Typing:
        return Typing((*batch, *c.empty(r)[len(batch) :]), (False,) * r.dim())

    return [typed(r) for r in result] if isinstance(result, (tuple, list)) else typed(result)


@rule("_linalg_solve_ex", "linalg_solve_triangular", "cholesky_solve", "linalg_lu_solve", "triangular_solve")
def _solve(c: Context, call: Any, result: Any) -> Any:
    """A X = B, column by column of B (row by row of X A = B)."""
    first_is_matrix = call.name in ("_linalg_solve_ex", "linalg_solve_triangular")
    a, b = (c.of(t) for t in ((call.args[0], call.args[1]) if first_is_matrix else (call.args[-1], call.args[0])))
    if call.name in ("cholesky_solve", "triangular_solve"):
        a = c.of(call.args[1])
    if call.name == "linalg_lu_solve":
        a, b = c.of(call.args[0]), c.of(call.args[2])
    left = argument(call, 2, "left", True) if call.name == "_linalg_solve_ex" else call.kwargs.get("left", True)
    vector = len(b.axes) == len(a.axes) - 1
    free = len(b.axes) - (1 if left else 2)
    for axis in (*a.axes[-2:], *(s for d, s in enumerate(b.axes) if d >= len(a.axes) - 2 and (vector or d != free))):
        c.freeze(axis, _MIXED)
    for one, other in zip(a.axes[:-2], b.axes, strict=False):
        c.unify(one, other)
    c.notes.undefined.extend(s for s, n in zip(a.axes[:-2], a.null, strict=False) if n)
    solved = Typing(b.axes, tuple(n and d == free and not vector for d, n in enumerate(b.null)))
    if not isinstance(result, (tuple, list)):
        return solved
    rest = [Typing((*a.axes[:-2], *c.empty(r)[len(a.axes) - 2 :]), (False,) * r.dim()) for r in result[1:]]
    return [solved, *rest]


@rule("linalg_cross")
def _cross(c: Context, call: Any, result: Any) -> Any:
    typed = pointwise(c, call, result)
    a, b = c.of(call.args[0]), c.of(call.args[1])
    c.freeze(typed.axes[call.kwargs.get("dim", -1)], "the three coordinates of a cross product")
    return Typing(typed.axes, tuple(p or q for p, q in zip(a.null, b.null, strict=True)))


@rule("trace")
def _trace(c: Context, call: Any, result: Any) -> Typing:
    x = c.of(call.args[0])
    c.contract(x.axes[0], x.axes[1], x.null[0] or x.null[1])
    return Typing((), ())


@rule("diagonal")
def _diagonal(c: Context, call: Any, result: Any) -> Typing:
    """Where row meets column: the same units."""
    x = c.of(call.args[0])
    n = len(x.axes)
    offset, one, two = argument(call, 1, "offset", 0), argument(call, 2, "dim1", 0) % n, argument(call, 3, "dim2", 1) % n
    keep = [d for d in range(n) if d not in (one, two)]
    axis, null = x.axes[one], x.null[one] or x.null[two]
    if offset == 0 and axis.size == x.axes[two].size:
        c.unify(axis, x.axes[two])
    else:
        for d in (one, two):
            c.freeze(x.axes[d], "a diagonal beside the middle one")
        axis = c.data(result.shape[-1])
    return Typing((*(x.axes[d] for d in keep), axis), (*(x.null[d] for d in keep), null), x.weight)


@rule("diag_embed")
def _diag_embed(c: Context, call: Any, result: Any) -> Typing:
    """The last axis as the diagonal of a matrix of zeros, whose rows and columns are the same units."""
    x = c.of(call.args[0])
    n = result.dim()
    offset, one, two = argument(call, 1, "offset", 0), argument(call, 2, "dim1", -2) % n, argument(call, 3, "dim2", -1) % n
    axis = x.axes[-1]
    if offset:
        c.freeze(axis, "a diagonal beside the middle one")
        axis = c.data(result.shape[one])
    others = iter(zip(x.axes[:-1], x.null[:-1], strict=True))
    typed = [(axis, x.null[-1]) if d in (one, two) else next(others) for d in range(n)]
    return Typing(tuple(a for a, _ in typed), tuple(z for _, z in typed))
