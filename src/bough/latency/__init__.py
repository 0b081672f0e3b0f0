"""Latency tables: op shapes, grids of measured times, and latency as a closed form of the kept counts."""

from bough.latency.form import LatencyForm
from bough.latency.line import LatencyLine
from bough.latency.points import required_points, to_csv
from bough.latency.table import LatencyTable

__all__ = ["LatencyForm", "LatencyLine", "LatencyTable", "required_points", "to_csv"]
