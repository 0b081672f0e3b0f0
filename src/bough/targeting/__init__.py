"""Plans whose cut model meets a latency as measured, and latency tables corrected by whole models."""

from bough.targeting.correction import correct_table
from bough.targeting.latency_target import Timed, meet_latency, of_this_machine, targeted

__all__ = ["Timed", "correct_table", "meet_latency", "of_this_machine", "targeted"]
