"""Structured pruning beside zeros in place, and how well kept work predicts measured time."""

from bough.contrasting.contrast import contrast
from bough.contrasting.contrast_files import PLOT as PLOT
from bough.contrasting.contrast_rows import ContrastRow
from bough.contrasting.contrasted import Contrast
from bough.contrasting.linear_fit import LinearFit
from bough.contrasting.predictability import Point, Predictability, predictability

__all__ = ["Contrast", "ContrastRow", "LinearFit", "Point", "Predictability", "contrast", "predictability"]
