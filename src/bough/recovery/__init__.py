"""What a cut has cost, won back: weights solved anew, statistics taken anew, units merged instead of dropped."""

from bough.recovery.folding import Merged, merge
from bough.recovery.recalibrate import recalibrate
from bough.recovery.refit import Refit, refit, refit_

__all__ = ["Merged", "Refit", "merge", "recalibrate", "refit", "refit_"]
