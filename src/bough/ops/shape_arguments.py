"""Integers of ops on shapes after a cut: sizes, starts, ends, repeats."""

from __future__ import annotations

import torch
from torch import fx

from bough.ops.rewriting import Site, Values
from bough.ops.spec import rewrites


@rewrites(
    "view", "view_copy", "_unsafe_view", "reshape", "expand", "broadcast_to", "zeros", "ones", "empty", "full", "rand", "randn",
    "new_zeros", "new_ones", "new_empty", "new_full",
)  # fmt: skip
def _sizes(site: Site) -> Values:
    name = next((n for n in ("size", "shape") if n in site.given), None)
    return {} if name is None else {name: site.sizes(site.given[name], site.result)}


@rewrites("unflatten")
def _unflatten(site: Site) -> Values:
    first = site.given["dim"] % len(site.axes("self"))
    given = site.given["sizes"]
    return {"sizes": site.sizes(given, site.result[first : first + len(given)])}


@rewrites("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
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


@rewrites("slice")
def _slice(site: Site) -> Values:
    axis = site.axes("self")[site.given.get("dim", 0)]
    changed: Values = {}
    for name in ("start", "end"):
        at = site.given.get(name)
        if isinstance(at, int) and at != 0 and at < axis.size and not (name == "start" and site.given.get("step", 1) != 1):
            changed[name] = site.position(axis, max(at, -axis.size))
    return changed


@rewrites("narrow")
def _narrow(site: Site) -> Values:
    axis = site.axes("self")[site.given["dim"]]
    start, length = site.given["start"], site.given["length"]
    changed = {"length": site.size(length, site.result[site.given["dim"]])}
    return {**changed, "start": site.position(axis, start)} if isinstance(start, int) else changed


@rewrites("select")
def _select(site: Site) -> Values:
    axis, at = site.axes("self")[site.given["dim"]], site.given["index"]
    return {"index": site.position(axis, at)} if isinstance(at, int) else {}


@rewrites("repeat", "tile")
def _repeat(site: Site) -> Values:
    """As often as the result is larger than what is repeated; in front of its axes, once per index."""
    name, axes = "repeats" if "repeats" in site.given else "dims", site.axes("self")
    times = [1] * (len(axes) - len(site.given[name])) + list(site.given[name])
    new = len(times) - len(axes)
    front = site.sizes(times[:new], site.result[:new])
    pairs = zip(times[new:], axes, site.result[new:], strict=True)
    return {name: front + [t if isinstance(t, fx.Node) else site.count(r) // site.count(a) for t, a, r in pairs]}


@rewrites("repeat_interleave")
def _interleave(site: Site) -> Values:
    dim, times = site.given.get("dim"), site.given["repeats"]
    if dim is None or not isinstance(times, int):
        return {}
    size = site.count(site.result[dim])
    output_size = {"output_size": size} if isinstance(site.given.get("output_size"), int) else {}
    return {**output_size, "repeats": size // site.count(site.axes("self")[dim])}


@rewrites("squeeze")
def _squeeze(site: Site) -> Values:
    """Only axes that had one index go, not those that have one left."""
    axes, given = site.axes("self"), site.given.get("dim")
    dims = range(len(axes)) if given is None else [given] if isinstance(given, int) else given
    if any(site.count(axes[d]) == 1 != axes[d].size for d in dims):
        site.node.target = torch.ops.aten.squeeze.dims
        site.node.args, site.node.kwargs = (site.given["self"], [d for d in dims if axes[d].size == 1]), {}
    return {}


@rewrites("histc")
def _counted(site: Site) -> Values:
    """How often each unit was chosen: one bin per unit."""
    bins = site.count(site.result[0])
    return {"bins": bins, "max": bins - 1 if site.given["max"] == site.result[0].size - 1 else site.given["max"]}
