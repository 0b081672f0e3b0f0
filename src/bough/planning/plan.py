"""A plan is data: which indices of which tensor stay, and what integers the model's Python gets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from bough.arguments import check_arguments
from bough.cost import Cost, shown
from bough.errors import PlanError
from bough.graph import Named, Unreached, unreached_lines
from bough.planning.attributes import Stale, stale_lines
from bough.planning.schema import FORMAT, VERSION, checked_plan
from bough.storage.schema import Invalid, read_json


@dataclass(frozen=True, slots=True)
class Scale:
    """Multiply indices of dim `dim` of a tensor by `factor`: keeps what the model derives from a width as it was."""

    name: str
    dim: int
    indices: tuple[int, ...]
    factor: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to keep.

    Attributes:
        kept: {parameter or buffer: {dim: indices kept, ascending}}, for each that is cut.
        removed: the opposite of `kept`: {parameter or buffer: {dim: indices that leave}}.
        groups: {group: (units kept, units before)}.
        attributes: {"module:attribute:key...": the number it becomes}, those that `forward` does not read included.
        scales: factors folded into weights.
        renormalizing: the cut groups over which a statistic runs (see `verify`).
        frozen: {group: why it could not be cut although its types allow it}.
        left_out: {layer: (the form in which it returns what it is given: 0 a tensor, n a tuple of n; whether the list that
            holds it closes up)}.
        sequences: {"module:attribute:key...": which items of a list that has one per layer stay}.
        ragged: {cut group: the group for each of whose units it keeps other units}, and `alike`: {group: why it could not}.
        cost, original: predicted cost after and before.
        rebuild: the model's own Python contradicts the plan, so it is carried out by `bough.rebuild`, not by `cut`.
        notes: what is to be said about how it was decided, and what its latency and energy stand on.
        fingerprint: of the model that the plan was made for.
        inputs: how many arguments it was traced with, or their names; None where that is not known.
        weights: digest of the parameters' values that the plan was made from (see `weights_digest`); None where they are not
            known, as on the meta device. A model with other weights may be cut by the plan; `refit` wants these.
        stale: the attributes that equal a width which is cut, which `forward` does not read, and which stay as they are,
            because it is not known that they mean this width: methods and other code that read them may fail.
        unreached: {module or tensor that no call reached: how it is treated}. Give calls that reach them, see `trace`.
        tie: the places that the user ties: names, patterns or (tensor, dim), see `trace`; `verify` needs them.
    """

    fingerprint: str
    kept: dict[str, dict[int, list[int]]]
    groups: dict[str, tuple[int, int]]
    attributes: dict[str, float]
    scales: tuple[Scale, ...]
    renormalizing: tuple[str, ...]
    frozen: dict[str, str]
    cost: Cost
    original: Cost
    original_shapes: dict[str, list[int]] = field(default_factory=dict)
    left_out: dict[str, tuple[int, bool]] = field(default_factory=dict)
    sequences: dict[str, list[int]] = field(default_factory=dict)
    ragged: dict[str, str] = field(default_factory=dict)
    alike: dict[str, str] = field(default_factory=dict)
    rebuild: bool = False
    notes: tuple[str, ...] = ()
    inputs: int | tuple[str, ...] | None = None
    weights: str | None = None
    stale: tuple[Stale, ...] = ()
    unreached: dict[str, str] = field(default_factory=dict)
    tie: tuple[tuple[Named, Named], ...] = ()

    @property
    def removed(self) -> dict[str, dict[int, list[int]]]:
        """{parameter or buffer: {dim: indices that leave, ascending}}, the complement of `kept`.

        Tensors that keep all their indices are not listed, nor are those of layers left out as a whole (see `left_out`).

        Example:
            >>> import torch, bough
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False), torch.nn.ReLU(), torch.nn.Linear(3, 2))
            >>> plan = bough.plan(bough.trace(net, torch.randn(1, 4)), {"0": [3.0, 1.0, 2.0]}, keep={"0": 2})
            >>> plan.kept, plan.removed
            ({'0.weight': {0: [0, 2]}, '2.weight': {1: [0, 2]}}, {'0.weight': {0: [1]}, '2.weight': {1: [1]}})
        """
        found: dict[str, dict[int, list[int]]] = {}
        for name, dims in self.kept.items():
            for dim, kept in dims.items():
                stay = set(kept)
                found.setdefault(name, {})[dim] = [i for i in range(self.original_shapes[name][dim]) if i not in stay]
        return found

    def unreached_lines(self) -> list[str]:
        """Return what is said about modules and tensors that no call reached, by lines; none if there are none."""
        return unreached_lines([Unreached(name, treatment) for name, treatment in self.unreached.items()])

    def tie_lines(self) -> list[str]:
        """Return a line for each two places that the user ties."""
        return [f"tied by hand: {_place(a)} and {_place(b)}" for a, b in self.tie]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; each index list is written once, however many tensors share it."""
        lists: dict[tuple[int, ...], int] = {}

        def number(indices: list[int]) -> int:
            return lists.setdefault(tuple(indices), len(lists))

        kept = {name: {str(d): number(i) for d, i in dims.items()} for name, dims in self.kept.items()}
        return {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "groups": {k: list(v) for k, v in self.groups.items()},
            "attributes": self.attributes,
            "scales": [[s.name, s.dim, number(list(s.indices)), s.factor] for s in self.scales],
            "renormalizing": list(self.renormalizing),
            "frozen": self.frozen,
            "cost": self.cost.to_dict(),
            "original": self.original.to_dict(),
            "original_shapes": self.original_shapes,
            "left_out": {k: list(v) for k, v in self.left_out.items()},
            "sequences": self.sequences,
            "ragged": self.ragged,
            "alike": self.alike,
            "rebuild": self.rebuild,
            "notes": list(self.notes),
            "inputs": self.inputs,
            "weights": self.weights,
            "stale": [[s.key, s.value, list(s.sizes), list(s.methods)] for s in self.stale],
            "unreached": self.unreached,
            "tie": [[list(place) if isinstance(place, tuple) else place for place in pair] for pair in self.tie],
            "kept": kept,
            "indices": [list(i) for i in lists],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @staticmethod
    def from_json(text: str) -> Plan:
        """Return the plan of which `to_json` made text.

        Raises:
            PlanError: the text is not a plan, or is damaged or of another version; the message names the field.
        """
        check_arguments(Plan.from_json, locals())
        try:
            return Plan.from_dict(read_json(text))
        except Invalid as error:
            raise PlanError(f"this is not a plan, or a damaged one: {error}") from None

    @staticmethod
    def from_dict(data: Any, place: str = "") -> Plan:
        """Return the plan of which `to_dict` made plain data; `place` is where the data stands in a larger file.

        Raises:
            Invalid: the data does not fit the schema of plans.
        """
        found = checked_plan(data, place)
        del found["format"], found["version"]
        found["scales"] = tuple(Scale(name, dim, tuple(indices), float(f)) for name, dim, indices, f in found["scales"])
        found["stale"] = tuple(Stale(key, value, tuple(n), tuple(m)) for key, value, n, m in found.get("stale", ()))
        for name in ("renormalizing", "notes", "tie"):
            found[name] = tuple(found.get(name, ()))
        return Plan(**found)

    def __str__(self) -> str:
        lines = [f"{'group':48} {'kept':>12}"]
        lines += [f"{n:48} {f'{k} of {t}':>12}" for n, (k, t) in self.groups.items() if k < t]
        lines += [f"left out: {name}" for name in self.left_out]
        if self.kept:
            dims = sum(map(len, self.kept.values()))
            lines.append(
                f"indices leave {dims} dims of {len(self.kept)} tensors: plan.removed lists them, plan.kept those that stay"
            )
        for key, after in self.cost.to_dict().items():
            before = self.original.to_dict()[key]
            change = f"{shown(key, before):>16} -> {shown(key, after):>16}  ({after / before:.1%} kept)" if before else "0"
            lines.append(f"{key:20} {change}")
        lines += self.notes
        lines += self.unreached_lines()
        lines += self.tie_lines()
        lines += [f"ragged: {n}, for each of {over}" for n, over in self.ragged.items()]
        lines += [f"not ragged: {n}: {why}" for n, why in self.alike.items()]
        lines += [f"not cut: {n}: {why}" for n, why in self.frozen.items()]
        if self.rebuild:
            lines.append("the model's Python contradicts this plan: carry it out with bough.rebuild")
        lines += stale_lines(self.stale)
        if self.scales:
            lines.append(f"scales folded into {len({s.name for s in self.scales})} weights")
        return "\n".join(lines)

    __repr__ = __str__


def _place(place: Named) -> str:
    return place if isinstance(place, str) else f"dim {place[1]} of {place[0]}"
