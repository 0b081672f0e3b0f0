"""What a cut has cost, won back: weights solved anew, statistics taken anew, units merged instead of dropped."""

from bough.recovery.recalibrate import recalibrate
from bough.recovery.refit import Refit, refit, refit_

__all__ = ["Refit", "recalibrate", "refit", "refit_"]
