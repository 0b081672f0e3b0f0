"""Refit: solve the weights of a cut model by least squares, layer by layer, to reproduce the dense model's outputs."""

from bough.recovery.refit.consumers import weight_uses
from bough.recovery.refit.layerwise import LayerwiseRefit
from bough.recovery.refit.records import RefitOptions, RefittedLayer, table_of
from bough.recovery.refit.refit import Refit, refit, refit_
from bough.recovery.refit.ridge import RIDGES, NormalEquations, Solution
from bough.recovery.refit.stages import block_ends, pair_blocks

__all__ = [
    "RIDGES", "LayerwiseRefit", "NormalEquations", "Refit", "RefitOptions", "RefittedLayer", "Solution", "block_ends",
    "pair_blocks", "refit", "refit_", "table_of", "weight_uses",
]  # fmt: skip
