"""Integer attributes of modules that equal a width: those that follow a cut, and those that become stale."""

from bough.planning.attributes.size_attributes import SizeAttributes
from bough.planning.attributes.stale import Stale, stale_lines
from bough.planning.attributes.standard_layers import flatten, refresh

__all__ = ["SizeAttributes", "Stale", "flatten", "refresh", "stale_lines"]
