"""A candidate of a search: how many units each group keeps, and which layers are left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model of a search space.

    Attributes:
        counts: units kept per group name, for the groups that the model has without `left_out`.
        left_out: names of the layers that are left out, sorted.
    """

    counts: Mapping[str, int]
    left_out: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return a digest that is the same for equal candidates, in every process.

        Example:
            >>> Candidate({"a": 1, "b": 2}).key == Candidate({"b": 2, "a": 1}).key
            True
        """
        text = json.dumps([sorted((name, int(n)) for name, n in self.counts.items()), sorted(self.left_out)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
