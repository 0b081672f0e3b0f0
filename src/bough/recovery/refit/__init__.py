"""Refit: solve the weights of a cut model by least squares, layer by layer, to reproduce the dense model's outputs."""

from bough.recovery.refit.consumers import weight_uses
from bough.recovery.refit.layerwise import RefittedLayer
from bough.recovery.refit.refit import Refit, refit, refit_
from bough.recovery.refit.ridge import RIDGES, NormalEquations, Solution

__all__ = ["RIDGES", "NormalEquations", "Refit", "RefittedLayer", "Solution", "refit", "refit_", "weight_uses"]
