"""Latency targets that hold as measured."""

from bough.targeting.meet import Timed, meet_latency, of_this_machine, targeted

__all__ = ["Timed", "meet_latency", "of_this_machine", "targeted"]
