"""What `contrast` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.arguments import check_arguments
from bough.contrasting.contrast_rows import ContrastRow


@dataclass(frozen=True, slots=True)
class Contrast:
    """Result of `contrast`; prints as a table.

    Attributes:
        rows: the dense model first.
        device: where latency was measured.
        tolerance: by how much the metric may be worse than the dense model's at equal accuracy.
        lower_is_better: of the metric.
        absent: runtimes that were not measured, with the reason.
    """

    rows: tuple[ContrastRow, ...]
    device: str
    tolerance: float
    lower_is_better: bool
    absent: dict[str, str]

    @property
    def dense(self) -> ContrastRow:
        """The row of the dense model."""
        return self.rows[0]

    @property
    def at_equal_accuracy(self) -> dict[str, ContrastRow | None]:
        """For each variant the row with the fewest non-zeros whose metric is within the tolerance; None if there is none."""
        found: dict[str, ContrastRow | None] = {}
        for row in self.rows[1:]:
            best = found.setdefault(row.variant, None)
            if self._is_good(row) and (best is None or row.nonzeros < best.nonzeros):
                found[row.variant] = row
        return found

    @property
    def at_equal_parameters(self) -> dict[float, tuple[ContrastRow, ...]]:
        """For each share of the parameters its rows, the best metric first."""
        found: dict[float, list[ContrastRow]] = {}
        for row in self.rows[1:]:
            if row.keep is not None and row.error is None:
                found.setdefault(row.keep, []).append(row)
        sign = 1 if self.lower_is_better else -1
        return {keep: tuple(sorted(rows, key=lambda r: sign * (r.metric or 0.0))) for keep, rows in found.items()}

    def _is_good(self, row: ContrastRow) -> bool:
        wanted, value = self.dense.before, row.metric
        if row.error is not None or value is None or wanted is None:
            return False
        worse = value - wanted if self.lower_is_better else wanted - value
        return worse <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        equal = {name: None if row is None else row.to_dict() for name, row in self.at_equal_accuracy.items()}
        return {
            "device": self.device, "tolerance": self.tolerance, "lower_is_better": self.lower_is_better,
            "rows": [r.to_dict() for r in self.rows], "at_equal_accuracy": equal, "absent": dict(self.absent),
        }  # fmt: skip

    def plot(self, path: str | Path) -> None:
        """Draw compression against measured speed-up, with the 1:1 line, and the metric; see `bough.contrasting.plots`."""
        check_arguments(Contrast.plot, locals())
        from bough.contrasting.plots import plot_contrast

        plot_contrast(self, Path(path))

    def __str__(self) -> str:
        heads = ["variant", "keep", "params", "non-zeros", "MACs", "non-zero MACs", "peak KiB", "file KiB", "sparse KiB"]
        runtimes = list(dict.fromkeys(n for r in self.rows for n in r.speedup)) or ["eager"]
        heads += ["gzip KiB", *runtimes, "before", "after"]
        cells = [heads, *(_cells(row, runtimes) for row in self.rows if row.error is None)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
            for r in cells
        ]
        lines.append(
            f"{', '.join(runtimes)}: speed-up over the dense model, {1e3 * self.dense.seconds['eager']:.3f} ms; {self.device}"
        )
        lines += [f"failed: {r.variant}{'' if r.keep is None else f' {r.keep:.0%}'}: {r.error}" for r in self.rows if r.error]
        for keep, rows in self.at_equal_parameters.items():
            ranked = "; ".join(f"{r.variant} {_metric(r)}, {r.fastest[1]:.2f} x ({r.fastest[0]})" for r in rows)
            lines.append(f"at {keep:.0%} of the parameters: {ranked}")
        for name, row in self.at_equal_accuracy.items():
            said = (
                "none of the rows" if row is None else f"{row.nonzeros:,} non-zeros, {row.fastest[1]:.2f} x ({row.fastest[0]})"
            )
            lines.append(f"within {self.tolerance:g} of the dense metric: {name}: {said}")
        for text in dict.fromkeys(f"{k}: {t}" for r in self.rows for k, t in r.notes.items()):
            lines.append(text)
        return "\n".join([*lines, *(f"{name}: {why}" for name, why in self.absent.items())])

    __repr__ = __str__


def _cells(row: ContrastRow, runtimes: Sequence[str]) -> list[str]:
    kib = [f"{v / 1024:.1f}" for v in (row.peak_memory, *(row.files[n] for n in ("dense", "sparse", "sparse_gzip")))]
    speed = [f"{row.speedup[n]:.2f} x" if n in row.speedup else "" for n in runtimes]
    metrics = ["" if row.before is None else f"{row.before:.4g}", "" if row.after is None else _metric(row)]
    keep = "" if row.keep is None else f"{row.keep:.0%}"
    counts = [f"{v:,}" for v in (row.params, row.nonzeros, row.macs, row.nonzero_macs)]
    return [row.variant, keep, *counts, *kib, *speed, *metrics]


def _metric(row: ContrastRow) -> str:
    spread = "" if row.spread is None else f" ± {row.spread:.2g}"
    return f"{row.metric:.4g}{spread}"
