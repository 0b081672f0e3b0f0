"""From scores and a budget to a plan."""

from bough.planning.allocation import Allocator
from bough.planning.attributes import Stale, stale_lines
from bough.planning.budget import Budget
from bough.planning.config_widths.per_layer import per_layer_config
from bough.planning.config_widths.recipe import config_mismatch
from bough.planning.draft import uncut_plan as uncut_plan
from bough.planning.options import OnConflict, Options
from bough.planning.plan import Plan, Scale
from bough.planning.planner import plan, planned

__all__ = [
    "Allocator",
    "Budget",
    "OnConflict",
    "Options",
    "Plan",
    "Scale",
    "Stale",
    "config_mismatch",
    "per_layer_config",
    "plan",
    "planned",
    "stale_lines",
]
