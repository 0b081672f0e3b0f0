"""Plans whose cut model meets a latency as measured, or an arena to the byte; latency tables corrected by whole models."""

from bough.targeting.arena_target import Placed, meet_arena
from bough.targeting.correction import correct_table
from bough.targeting.latency_target import Timed, meet_latency, of_this_machine, targeted

__all__ = ["Placed", "Timed", "correct_table", "meet_arena", "meet_latency", "of_this_machine", "targeted"]
