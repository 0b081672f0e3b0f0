"""Keeps what a model derives from a width, such as attention's default 1/sqrt(head_dim), as it was.

The ratio is folded into weights upstream: the wish "multiply this tensor by c" is pulled back, op by op, through
rearrangements and linear arithmetic, until every branch of it ends in a parameter. A branch that ends elsewhere, or an
index that is read by someone who wants it unchanged, makes the wish fail.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from functools import cached_property
from math import frexp, log2, prod, ulp
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bough.graph import Graph, OpRecord, atoms_of
from bough.planning.plan import Scale
from bough.tracing.replay import Conflict, Rescale

Wish = NDArray[np.float64]  # a factor for each index of a tensor; NaN: any

_PASS = frozenset(["clone", "_to_copy", "detach", "alias", "contiguous", "neg", "relu", "native_dropout", "dropout"])
_RESHAPE = frozenset(["reshape", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten"])
_LINEAR = frozenset(["linear", "mm", "addmm", "bmm", "baddbmm", "convolution"])
_NORM = {"layer_norm": (1, 2), "rms_norm": (1,), "batch_norm": (1, 2)}


class _Unfoldable(Exception):
    pass


def fold(graph: Graph, rescales: Sequence[Rescale]) -> tuple[tuple[Scale, ...], list[Conflict]]:
    """Return (factors for parameters, the wishes that no parameter can take)."""
    flow = _Flow(graph)
    parts = [_granted(flow, wishes) for wishes in _repeated(rescales)]
    return tuple(s for scales, _ in parts for s in scales), [c for _, conflicts in parts for c in conflicts]


def _granted(flow: _Flow, wishes: Sequence[Rescale]) -> tuple[list[Scale], list[Conflict]]:
    """Return (factors for parameters, conflicts) of wishes that are granted together, or else one by one."""
    try:
        return flow.granted(wishes), []
    except _Unfoldable as error:
        if len(wishes) == 1:
            op = wishes[0].op
            spaces = [op.scale_of] if op.scale_of is not None else [s for axes in op.arguments for s in axes]
            what = f"a number that the model derives from a cut width can not be kept: {error}"
            return [], [Conflict(what, op, frozenset(atoms_of(tuple(spaces))))]
    parts = [_granted(flow, [wish]) for wish in wishes]
    return [s for scales, _ in parts for s in scales], [c for _, conflicts in parts for c in conflicts]


def _repeated(rescales: Sequence[Rescale]) -> list[list[Rescale]]:
    """Put together the wishes of one line of one module, which runs again in another call, or for another layer.

    They multiply the same weights, and are granted together: each alone would find that the other reads them unchanged.
    """
    by_place: dict[tuple[Any, ...], list[Rescale]] = {}
    for wish in rescales:
        by_place.setdefault((wish.op.name, wish.op.module, wish.op.where, wish.argument, wish.factor), []).append(wish)
    return list(by_place.values())


class _Flow:
    """Who makes and who reads each value of the recorded run."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @cached_property
    def maker(self) -> dict[int, tuple[OpRecord, int]]:
        return {v: (op, i) for op in self.graph.all_ops for i, v in enumerate(op.values)}

    @cached_property
    def readers(self) -> dict[int | str, list[tuple[OpRecord, int]]]:
        table: dict[int | str, list[tuple[OpRecord, int]]] = {}
        for op in self.graph.all_ops:
            for i, (value, state) in enumerate(zip(op.inputs, op.states, strict=True)):
                table.setdefault(state or value, []).append((op, i))
        return table

    def granted(self, wishes: Sequence[Rescale]) -> list[Scale]:
        """Return the scales that grant the wishes of one line of code, at the place where least is lost.

        Of a product of two activations, either may take the factor. Multiplying by a power of two loses nothing anywhere;
        other factors are rounded, so they go where parameters have the finer dtype, and else into the first activation.
        """
        factor = _exact(wishes[0].factor)
        attends = wishes[0].op.name == "scaled_dot_product_attention"
        found: list[list[Scale]] = []
        failure: _Unfoldable | None = None
        for side in (0, 1):
            argument = 1 if attends and side == 1 else wishes[0].argument  # of attention the keys, in place of the queries
            try:
                found.append(self._pull_back([replace(w, factor=factor, argument=argument) for w in wishes], side))
            except _Unfoldable as error:
                failure = error
            if found and self._loss(found[0]) <= self._least_loss:
                break
        if not found:
            assert failure is not None
            raise failure
        return min(found, key=self._loss)

    @cached_property
    def _least_loss(self) -> float:
        """The rounding of the finest dtype that parameters have."""
        dtypes = {p.dtype for p in self.graph.model.parameters() if p.is_floating_point()}
        return min((torch.finfo(d).eps for d in dtypes), default=0.0)

    def _loss(self, scales: Sequence[Scale]) -> float:
        """Return the largest relative rounding error of the parameters that are scaled."""
        rounded = [self.graph.tensor(s.name).dtype for s in scales if abs(frexp(s.factor)[0]) != 0.5]
        return max((torch.finfo(d).eps for d in rounded if d.is_floating_point), default=0.0)

    def _pull_back(self, given: Sequence[Rescale], side: int) -> list[Scale]:
        wishes: dict[int | str, Wish] = {}
        readers_by_axis: dict[int | str, set[tuple[int, int]]] = {}
        done: set[int | str] = set()
        scales: list[Scale] = []

        def tell(reader: OpRecord, i: int, factors: Wish) -> None:
            key = reader.states[i] or reader.inputs[i]
            readers_by_axis.setdefault(key, set()).add((reader.index, i))
            wishes[key] = _merge(wishes.get(key), factors)

        for wish in given:
            tell(wish.op, wish.argument, np.full(_shape(wish.op, wish.argument), wish.factor))
        while wishes:
            key = max(wishes, key=lambda k: self.maker[k][0].index if isinstance(k, int) and k in self.maker else -1)
            factors = wishes.pop(key)
            for reader, i in self.readers[key]:
                if (reader.index, i) not in readers_by_axis[key]:
                    factors = _merge(factors, _read(reader, i))
            if isinstance(key, str):
                scales += self._scale(key, factors)
                continue
            if key not in self.maker:
                raise _Unfoldable("it reaches an input of the model")
            maker, output = self.maker[key]
            if not maker.arguments:
                raise _Unfoldable(f"it reaches a constant ({maker.name}, {maker.where})")
            for i, part in _through(maker, output, factors, side):
                if not (np.isnan(part) | (part == 1)).all():  # who wants no change speaks up when someone else does
                    tell(maker, i, part)
            done.add(key)
            for j in self._silent(maker, wishes.keys() | done):  # the same of the other parts of what is split
                ones = np.ones([a.size for a in maker.results[j]])
                for i, part in _through(maker, j, ones, side):
                    tell(maker, i, part)
        return scales

    def _silent(self, op: OpRecord, heard: Set[int | str]) -> list[int]:
        """The results of an op that are read, and of which nothing was wished."""
        return [j for j, v in enumerate(op.values) if v in self.readers and v not in heard]

    def _scale(self, name: str, factors: Wish) -> list[Scale]:
        if not self.graph.states[name].parameter:
            raise _Unfoldable(f"it reaches the buffer {name}")
        axes = self.graph.states[name].axes
        if axes and any(other.axes is axes for other in self.graph.states.values() if other.name != name):
            raise _Unfoldable(f"it reaches {name}, whose memory is another tensor's, too")
        factors = np.where(np.isnan(factors), 1.0, factors)
        for dim in range(factors.ndim):
            line = np.moveaxis(factors, dim, 0).reshape(factors.shape[dim], -1)
            if (line == line[:, :1]).all():
                vector = line[:, 0]
                return [
                    Scale(name, dim, tuple(np.flatnonzero(vector == f).tolist()), float(f)) for f in np.unique(vector) if f != 1
                ]
        raise _Unfoldable(f"{name} would need a factor that varies over several dims")


def _exact(factor: float) -> float:
    """Return the power of two that a factor is but for the rounding of its own computation; otherwise the factor."""
    power = 2.0 ** round(log2(factor)) if factor > 0 else factor
    return power if abs(factor - power) <= 4 * ulp(power) else factor


def _shape(op: OpRecord, i: int) -> tuple[int, ...]:
    return tuple(a.size for a in op.arguments[i])


def _merge(a: Wish | None, b: Wish) -> Wish:
    if a is None:
        return b
    both = ~np.isnan(a) & ~np.isnan(b)
    if not np.allclose(a[both], b[both], rtol=1e-9, atol=0):
        raise _Unfoldable("a tensor is also read where it must stay as it is")
    return np.where(np.isnan(a), b, a)


def _read(op: OpRecord, i: int) -> Wish:
    """What a reader that wants its results unchanged wants of its argument i: ones, where it reads."""
    shape = _shape(op, i)
    try:
        places = _places(op, i)
    except _Unfoldable:
        return np.ones(shape)
    wish = np.full(prod(shape), np.nan)
    for place in places:
        wish[place[place >= 0]] = 1.0
    return wish.reshape(shape)


def _places(op: OpRecord, i: int) -> list[NDArray[np.int64]]:
    """For each result: the flat index in argument i that each of its elements comes from (-1: from elsewhere)."""
    shape = _shape(op, i)
    ids = np.arange(prod(shape)).reshape(shape)
    results = [tuple(a.size for a in axes) for axes in op.results]
    name, detail = op.name.rstrip("_") if not op.name.startswith("_") else op.name, op.detail
    if name in _PASS or name in ("mul", "add", "sub", "div"):
        return [np.broadcast_to(ids, r) for r in results[:1]]
    if name in _RESHAPE:
        return [ids.reshape(results[0])]
    if name == "permute":
        return [ids.transpose(detail[1])]
    if name in ("transpose", "t"):
        return [np.swapaxes(ids, *(detail[1:3] if len(detail) > 2 else (0, -1)))]
    if name == "expand":
        return [np.broadcast_to(ids, results[0])]
    if name == "select":
        return [np.take(ids, detail[2], axis=detail[1])]
    if name == "unbind":
        return list(np.moveaxis(ids, detail[1] if len(detail) > 1 else 0, 0))
    if name == "slice":
        dim, start, step = (*detail[1:3], detail[4] if len(detail) > 4 else 1) if len(detail) > 2 else (0, 0, 1)
        size = results[0][dim]
        begin = start or 0
        begin = begin + shape[dim] if begin < 0 else begin
        return [np.take(ids, begin + step * np.arange(size), axis=dim)]
    if name.startswith(("split", "chunk", "unsafe_split")):
        dim = detail[2] if len(detail) > 2 else 0
        return np.split(ids, np.cumsum([r[dim] for r in results])[:-1], axis=dim)
    if name == "cat":
        dim = detail[1] if len(detail) > 1 else 0
        if any(len(axes) != len(shape) for axes in op.arguments):
            raise _Unfoldable(f"it meets {op.name} of tensors of different dims in {op.module} ({op.where})")
        parts = [ids if j == i else np.full(_shape(op, j), -1) for j in range(len(op.arguments))]
        return [np.concatenate([p for p in parts if p.size], axis=dim)]  # torch joins empty tensors of any number of dims
    raise _Unfoldable(f"it meets {op.name} in {op.module} ({op.where})")


def _through(op: OpRecord, output: int, factors: Wish, side: int) -> list[tuple[int, Wish]]:
    """The wishes on an op's arguments that grant a wish on its result."""
    name = op.name.rstrip("_") if not op.name.startswith("_") else op.name
    if name == "matmul" or (name == "einsum" and len(op.arguments) == 2):
        known = factors[~np.isnan(factors)]
        if not np.allclose(known, known.flat[0], rtol=1e-9, atol=0):
            raise _Unfoldable(f"it meets {op.name} in {op.module} with several factors")
        return [(side, np.full(_shape(op, side), known.flat[0])), (1 - side, np.ones(_shape(op, 1 - side)))]
    if name in _LINEAR:
        return _through_linear(op, name, factors)
    if name in _NORM:
        vector = _along(factors, 1 if name == "batch_norm" else factors.ndim - 1)
        if len(op.arguments) <= _NORM[name][0] or not op.states[1]:
            raise _Unfoldable(f"it meets {op.name} without weights in {op.module}")
        last = min(len(op.arguments), 1 + len(_NORM[name]))
        return [(i, vector) for i in range(1, last)]
    if name in ("mul", "div"):
        takers = [max(range(len(op.arguments)), key=lambda i: prod(_shape(op, i)))] if name == "mul" else [0]
    elif name in ("add", "sub", "cat"):
        if op.scalars:
            raise _Unfoldable(f"a number is added in {op.module} ({op.where})")
        takers = list(range(len(op.arguments)))
    else:
        takers = [0]
    result = []
    for i in range(len(op.arguments)):
        wish = _read(op, i)
        if i in takers:
            wish = _carry(op, i, output, factors)
        result.append((i, wish))
    return result


def _carry(op: OpRecord, i: int, output: int, factors: Wish) -> Wish:
    shape = _shape(op, i)
    places = _places(op, i)[output]
    wish = np.full(prod(shape), np.nan)
    mine = (places >= 0) & ~np.isnan(factors)
    wish[places[mine]] = factors[mine]
    if not np.allclose(wish[places[mine]], factors[mine], rtol=1e-9, atol=0):
        raise _Unfoldable(f"{op.name} in {op.module} repeats a value that would need two factors")
    return wish.reshape(shape)


def _along(factors: Wish, dim: int) -> Wish:
    """The factor per index of `dim`, the same everywhere else."""
    line = np.moveaxis(factors, dim, 0).reshape(factors.shape[dim], -1)
    low, high = _nan(np.nanmin, line), _nan(np.nanmax, line)
    if not np.allclose(low, high, rtol=1e-9, atol=0, equal_nan=True):
        raise _Unfoldable("a linear layer's output would need different factors at different positions")
    return np.where(np.isnan(low), 1.0, low)


def _nan(reduce: Any, line: Wish) -> Wish:
    empty = np.asarray(np.isnan(line).all(axis=1))
    return np.where(empty, np.nan, reduce(np.where(empty[:, None], 0.0, line), axis=1))


def _through_linear(op: OpRecord, name: str, factors: Wish) -> list[tuple[int, Wish]]:
    biased = name in ("addmm", "baddbmm")
    weight = 2 if biased else 1
    dim = 1 if name == "convolution" else factors.ndim - 1
    vector = _along(factors, dim)
    shape = _shape(op, weight)
    axis = len(shape) - 1 if name in ("mm", "addmm", "bmm", "baddbmm") else 0
    if shape[axis] != len(vector):
        raise _Unfoldable(f"it meets {op.name} in {op.module}")
    column = vector.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    result: list[tuple[int, Wish]] = [(weight, np.broadcast_to(column, shape).copy())]
    bias = 0 if biased else 2
    if biased or len(op.arguments) > 2:
        result.append((bias, np.broadcast_to(vector, _shape(op, bias)).copy()))
    return result
