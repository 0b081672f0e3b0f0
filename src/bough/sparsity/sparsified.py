"""What `sparsify` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from bough.planning import Plan
from bough.recovery.regularize import Masks
from bough.sparsity.attached_masks import detach_masks_
from bough.sparsity.permutation import Permuted


@dataclass(frozen=True, slots=True)
class SparseLayer:
    """Record of a weight that was made sparse.

    Attributes:
        name: of the parameter; with a number if several operators read parts of it.
        nonzeros, size: number of elements that stay, and of all.
        kept_energy: sum of squares of the elements that stay, as a share of all; None where the weight was solved for.
        error: E|x (w - w_sparse)|^2 as a share of E|x w|^2 where the weight was solved for; else None.
    """

    name: str
    nonzeros: int
    size: int
    kept_energy: float | None
    error: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sparsified:
    """Result of `sparsify`.

    Attributes:
        model: the sparse model. Its masks are attached as parametrizations, so that any training keeps zeros zero.
        masks: {parameter: bool tensor, True where the element stays}, the kind of masks that `recovery.Sparse` and lottery
            tickets use.
        layers: what each weight keeps.
        left_out: parameters of two dims or more that stay dense, with the reason.
        method: that chose the elements.
        allocation: of the share over weights, or the N:M pattern.
        permuted: what a permutation of channels has gained.
        plan: cuts nothing; with it `bough.save(result, folder)` writes a checkpoint that `bough.load` reads.
    """

    model: nn.Module
    masks: Masks
    layers: tuple[SparseLayer, ...]
    left_out: dict[str, str]
    method: str
    allocation: str
    plan: Plan
    permuted: Permuted = field(default_factory=Permuted)

    @property
    def sparsity(self) -> float:
        """The share of zeros in the weights that were made sparse."""
        return 1 - sum(x.nonzeros for x in self.layers) / sum(x.size for x in self.layers)

    def remove(self) -> nn.Module:
        """Make the zeros permanent: take the masks away from `model` and return it, an ordinary module with zeros."""
        return detach_masks_(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Return layers and reasons as plain values, for JSON."""
        return {
            "method": self.method, "allocation": self.allocation, "sparsity": self.sparsity,
            "layers": [x.to_dict() for x in self.layers], "left_out": dict(self.left_out), "permuted": self.permuted.to_dict(),
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{'sparse':56} {'non-zeros':>12} {'of':>12} {'kept':>7} {'energy':>8} {'error':>8}"]
        for x in self.layers:
            shares = [("" if v is None else f"{v:.2%}") for v in (x.kept_energy, x.error)]
            lines.append(f"{x.name:56} {x.nonzeros:12,} {x.size:12,} {x.nonzeros / x.size:7.1%} {shares[0]:>8} {shares[1]:>8}")
        lines += [f"dense: {name}: {why}" for name, why in self.left_out.items()]
        lines += [str(self.permuted)] if self.permuted.groups or self.permuted.skipped else []
        return "\n".join(lines)

    __repr__ = __str__
