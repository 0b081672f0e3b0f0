"""`SubnetTable`: one subnet for each device or budget, as JSON; any row can be extracted later."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bough.cost import Cost, shown
from bough.errors import PlanError, instead
from bough.storage import write_text
from bough.storage.schema import Invalid, read_json
from bough.supernet.subnet import Subnet

FORMAT, VERSION = "bough-subnet-table", 1


@dataclass(frozen=True, slots=True)
class SubnetRow:
    """A subnet for one device.

    Attributes:
        name: of the device or budget.
        subnet: widths and layers.
        cost: predicted cost.
        metric: what `evaluate` returned for the subnet; None if it was not evaluated.
    """

    name: str
    subnet: Subnet
    cost: Cost
    metric: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data, for JSON."""
        return {"name": self.name, **self.subnet.to_dict(), "cost": self.cost.to_dict(), "metric": self.metric}


@dataclass(frozen=True, slots=True)
class SubnetTable:
    """Subnets of one supernet, by device.

    Attributes:
        fingerprint: of the supernet's architecture.
        rows: a subnet each.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> table = bough.supernet(net, torch.randn(1, 4)).table({"phone": bough.Budget(macs="50%")})
        >>> SubnetTable.from_json(table.to_json())["phone"].subnet.counts
        {'0': 4}
    """

    fingerprint: str
    rows: tuple[SubnetRow, ...]

    def __getitem__(self, name: str) -> SubnetRow:
        """Return the row of a device.

        Raises:
            PlanError: there is no such row.
        """
        found = next((row for row in self.rows if row.name == name), None)
        if found is None:
            raise PlanError(f"the table has no row {name!r}; {instead(name, (row.name for row in self.rows))}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain data, for JSON."""
        rows = [row.to_dict() for row in self.rows]
        return {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint, "rows": rows}

    def to_json(self) -> str:
        """Return the table as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    @staticmethod
    def from_json(text: str) -> SubnetTable:
        """Return the table of which `to_json` made text.

        Raises:
            PlanError: the text is no table of subnets, or of another version.
        """
        try:
            data = read_json(text)
            if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (FORMAT, VERSION):
                raise PlanError(f"this is no table of subnets of version {VERSION}")
            rows = [SubnetRow(r["name"], Subnet.from_dict(r), Cost(**r["cost"]), r["metric"]) for r in data["rows"]]
            return SubnetTable(data["fingerprint"], tuple(rows))
        except (Invalid, KeyError, TypeError) as error:
            raise PlanError(f"this is no table of subnets, or a damaged one: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table to a JSON file, which is replaced, and return its path."""
        write_text(Path(path), self.to_json() + "\n")
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SubnetTable:
        """Return the table in a file that `save` wrote.

        Raises:
            PlanError: as `from_json`, or there is no such file.
        """
        if not Path(path).is_file():
            raise PlanError(f"{path}: there is no such file")
        return SubnetTable.from_json(Path(path).read_text(encoding="utf-8"))

    def __str__(self) -> str:
        lines = [f"{'device':20} {'params':>14} {'MACs':>16} {'metric':>10}"]
        for row in self.rows:
            metric = "" if row.metric is None else f"{row.metric:.4g}"
            lines.append(
                f"{row.name:20} {shown('params', row.cost.params):>14} {shown('macs', row.cost.macs):>16} {metric:>10}"
            )
        return "\n".join(lines)
