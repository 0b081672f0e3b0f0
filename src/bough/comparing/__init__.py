"""Criteria, allocations and budgets side by side, on the user's own metric."""

from bough.comparing.compare import compare
from bough.comparing.comparison import Comparison
from bough.comparing.rows import Line, Row

__all__ = ["Comparison", "Line", "Row", "compare"]
