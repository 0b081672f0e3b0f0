"""What the integers among an op's arguments become when the axes of its tensors are cut: what a rewriting function is given.

An op without such a function keeps its arguments; whether that is right is checked by running the rewritten program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

from bough.spaces import Atom, Indices, Space, count, indices

Axes = tuple[Space, ...]
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Types:
    """What is known from a typed run of a program, by node."""

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


def noted(name: str) -> Callable[[Site], Values]:
    """An integer that the typing rule gives a space for."""

    def rewrite(site: Site) -> Values:
        noted = site.types.integers.get(site.node, {})
        return {name: site.count(noted[name])} if name in noted else {}

    return rewrite
