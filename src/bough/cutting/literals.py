"""What the integers among an op's arguments become when the axes of its tensors are cut.

One entry per family of ops in `REWRITES`: a short function from a `Site` to {argument: its new value}. An op without an
entry keeps its arguments; whether that is right is checked by running the rewritten program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from bough.spaces import Atom, Indices, Space, count, indices

Axes = tuple[Space, ...]
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Types:
    """What a typed run of a program tells, by node."""

    axes: dict[fx.Node, Any] = field(default_factory=dict)  # of the tensor it gives, or a list of them
    numbers: dict[fx.Node, int] = field(default_factory=dict)  # the integer it gives, where sizes are symbolic
    integers: dict[fx.Node, Mapping[str, Space]] = field(default_factory=dict)  # what the rules say of its arguments
    ranges: dict[fx.Node, Space] = field(default_factory=dict)  # the units that its values number


@dataclass(frozen=True, slots=True)
class Site:
    """A node, with its arguments by name and the types around it."""

    node: fx.Node
    given: Values
    types: Types
    kept: Mapping[Atom, Indices]

    @property
    def result(self) -> Axes:
        return self.types.axes[self.node]  # type: ignore[no-any-return]

    def axes(self, name: str) -> Axes:
        """The axes of a tensor argument."""
        return self.types.axes[self.given[name]]  # type: ignore[no-any-return]

    def count(self, axis: Space) -> int:
        """The size of an axis after the cut."""
        return int(count(axis, {a: len(i) for a, i in self.kept.items()}))

    def size(self, given: Any, axis: Space) -> Any:
        """What is to be given as the size of `axis`; a symbolic size of another value is left for torch to infer."""
        new = self.count(axis)
        if isinstance(given, fx.Node):
            return given if self.types.numbers.get(given, new) == new else -1
        return given if given == -1 else new

    def sizes(self, given: Sequence[Any], axes: Axes) -> list[Any]:
        return [self.size(n, a) for n, a in zip(given, axes, strict=True)]

    def position(self, axis: Space, at: int) -> int:
        """How many of the first `at` indices of `axis` are kept."""
        return int(np.searchsorted(indices(axis, self.kept), at + axis.size if at < 0 else at))


def _sizes(site: Site) -> Values:
    name = next((n for n in ("size", "shape") if n in site.given), None)
    return {} if name is None else {name: site.sizes(site.given[name], site.result)}


def _unflatten(site: Site) -> Values:
    first = site.given["dim"] % len(site.axes("self"))
    given = site.given["sizes"]
    return {"sizes": site.sizes(given, site.result[first : first + len(given)])}


def _split(site: Site) -> Values:
    """Whatever it was, it becomes a list of sizes, as parts that were equal need not stay so."""
    dim = site.given.get("dim", 0)
    parts = [axes[dim] for axes in site.types.axes[site.node]]
    new = [site.count(p) for p in parts]
    if new == [p.size for p in parts]:
        return {}
    site.node.target = torch.ops.aten.split_with_sizes.default
    site.node.args, site.node.kwargs = (site.given["self"], new, dim), {}
    return {}


def _slice(site: Site) -> Values:
    axis = site.axes("self")[site.given.get("dim", 0)]
    changed: Values = {}
    for name in ("start", "end"):
        at = site.given.get(name)
        if isinstance(at, int) and at != 0 and at < axis.size and not (name == "start" and site.given.get("step", 1) != 1):
            changed[name] = site.position(axis, max(at, -axis.size))
    return changed


def _narrow(site: Site) -> Values:
    axis = site.axes("self")[site.given["dim"]]
    start, length = site.given["start"], site.given["length"]
    changed = {"length": site.size(length, site.result[site.given["dim"]])}
    return {**changed, "start": site.position(axis, start)} if isinstance(start, int) else changed


def _select(site: Site) -> Values:
    axis, at = site.axes("self")[site.given["dim"]], site.given["index"]
    return {"index": site.position(axis, at)} if isinstance(at, int) else {}


def _noted(name: str) -> Callable[[Site], Values]:
    """An integer that the typing rule gives a space for."""

    def rewrite(site: Site) -> Values:
        noted = site.types.integers.get(site.node, {})
        return {name: site.count(noted[name])} if name in noted else {}

    return rewrite


def _normalized_shape(site: Site) -> Values:
    given = site.given["normalized_shape"]
    return {"normalized_shape": site.sizes(given, site.axes("input")[-len(given) :])}


def _repeat(site: Site) -> Values:
    """As often as the result is larger than what is repeated; in front of its axes, once per index."""
    name, axes = "repeats" if "repeats" in site.given else "dims", site.axes("self")
    times = [1] * (len(axes) - len(site.given[name])) + list(site.given[name])
    new = len(times) - len(axes)
    front = site.sizes(times[:new], site.result[:new])
    pairs = zip(times[new:], axes, site.result[new:], strict=True)
    return {name: front + [t if isinstance(t, fx.Node) else site.count(r) // site.count(a) for t, a, r in pairs]}


def _interleave(site: Site) -> Values:
    dim, times = site.given.get("dim"), site.given["repeats"]
    if dim is None or not isinstance(times, int):
        return {}
    size = site.count(site.result[dim])
    told = {"output_size": size} if isinstance(site.given.get("output_size"), int) else {}
    return {**told, "repeats": size // site.count(site.axes("self")[dim])}


def _squeeze(site: Site) -> Values:
    """Only axes that had one index go, not those that have one left."""
    axes, given = site.axes("self"), site.given.get("dim")
    dims = range(len(axes)) if given is None else [given] if isinstance(given, int) else given
    if any(site.count(axes[d]) == 1 != axes[d].size for d in dims):
        site.node.target = torch.ops.aten.squeeze.dims
        site.node.args, site.node.kwargs = (site.given["self"], [d for d in dims if axes[d].size == 1]), {}
    return {}


def _attention(site: Site) -> Values:
    """Attention scales by the width of the original: 1 / sqrt(width), unless it is told another number."""
    width = site.axes("query")[-1]
    changed = site.given.get("scale") is None and site.count(width) != width.size
    return {"scale": width.size**-0.5} if changed else {}


def _compared(site: Site) -> Values:
    """A unit's number, among all of them, is compared with numbers among the kept: its place there, or none."""
    numbered, at = site.types.ranges.get(site.given["self"]), site.given["other"]
    if numbered is None or type(at) is not int or at < 0:
        return {}
    place = site.position(numbered, at)
    name = site.node.target._schema.name  # type: ignore[union-attr]
    if name in ("aten::lt", "aten::ge"):
        return {"other": place}
    there = at in indices(numbered, site.kept)
    return {"other": place if there else -1 if name in ("aten::eq", "aten::ne") else place - 1}


def _counted(site: Site) -> Values:
    """How often each unit was chosen: one bin per unit."""
    bins = site.count(site.result[0])
    return {"bins": bins, "max": bins - 1 if site.given["max"] == site.result[0].size - 1 else site.given["max"]}


_CONVOLUTIONS = [f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)]
REWRITES: dict[str, Callable[[Site], Values]] = {
    **dict.fromkeys(("view", "view_copy", "_unsafe_view", "reshape", "expand", "broadcast_to"), _sizes),
    **dict.fromkeys(("zeros", "ones", "empty", "full", "rand", "randn"), _sizes),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full"), _sizes),
    "unflatten": _unflatten,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split"), _split),
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    **dict.fromkeys((*_CONVOLUTIONS, "convolution", "channel_shuffle"), _noted("groups")),
    "group_norm": _noted("num_groups"),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalized_shape),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "repeat_interleave": _interleave,
    "squeeze": _squeeze,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), _compared),
    "histc": _counted,
}


def rewrite(node: fx.Node, types: Types, kept: Mapping[Atom, Indices]) -> None:
    """Gives a node the integers that its axes have after the cut."""
    if not isinstance(node.target, torch._ops.OpOverload) or node not in types.axes:
        return
    entry = REWRITES.get(node.target._schema.name.removeprefix("aten::"))
    if entry is None:
        return
    given = {**dict(zip(arguments(node), node.args, strict=False)), **node.kwargs}
    for name, value in entry(Site(node, given, types, kept)).items():
        set_argument(node, name, value)


def arguments(node: fx.Node) -> list[str]:
    """The names of the arguments that a node's op can be given; none where it calls no op."""
    return [a.name for a in node.target._schema.arguments] if isinstance(node.target, torch._ops.OpOverload) else []


def argument(node: fx.Node, name: str) -> Any:
    """An argument by its name in the op's schema; None where it is not given."""
    return {**dict(zip(arguments(node), node.args, strict=False)), **node.kwargs}.get(name)


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Sets an argument by its name in the op's schema, where the node gives it or by keyword."""
    at = arguments(node).index(name)
    if at < len(node.args):
        node.update_arg(at, value)
    else:
        node.update_kwarg(name, value)
