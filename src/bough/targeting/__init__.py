"""Plans whose cut model meets a latency as measured, or an arena to the byte; latency tables corrected by whole models."""

from bough.targeting.arena_target import Limits, Placed, export_limits, meet_arena, placed
from bough.targeting.correction import correct_table
from bough.targeting.latency_target import Timed, meet_latency, of_this_machine, targeted

__all__ = [
    "Limits", "Placed", "Timed", "correct_table", "export_limits", "meet_arena", "meet_latency", "of_this_machine", "placed",
    "targeted",
]  # fmt: skip
