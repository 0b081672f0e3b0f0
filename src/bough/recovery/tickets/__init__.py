"""Lottery tickets: masks by magnitude or by plan, rewinding, and iterative pruning with a random control."""

from bough.recovery.tickets.rewinding import rewind_, snapshot
from bough.recovery.tickets.ticket_masks import magnitude_masks, random_masks, random_plan
from bough.recovery.tickets.tickets import Ticket, find_tickets

__all__ = ["Ticket", "find_tickets", "magnitude_masks", "random_masks", "random_plan", "rewind_", "snapshot"]
