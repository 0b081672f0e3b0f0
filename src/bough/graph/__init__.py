"""What tracing hands on: the graph of recorded runs, its groups, and the closed form of its costs."""

from bough.graph.closed_form import ClosedForm, activation_parts, closed_form, cost_of
from bough.graph.cost import FIELDS, SECONDS_AND_JOULES, Cost, shown
from bough.graph.graph import Graph
from bough.graph.model_tensors import model_tensor, module_of
from bough.graph.polynomials import Builder, Counts, Part, Polynomials, numel, total
from bough.graph.records import (
    Beside,
    Frozen,
    Group,
    GroupKind,
    Layer,
    Member,
    ModuleCall,
    Named,
    OpRecord,
    Ragged,
    RecordedRun,
    State,
    Storage,
    UnknownOp,
    Unreached,
    atoms_of,
    sizes,
    unreached_lines,
    value_axes,
)
from bough.graph.weight_source import WeightSource

__all__ = [
    "FIELDS",
    "SECONDS_AND_JOULES",
    "Beside",
    "Builder",
    "ClosedForm",
    "Cost",
    "Counts",
    "Frozen",
    "Graph",
    "Group",
    "GroupKind",
    "Layer",
    "Member",
    "ModuleCall",
    "Named",
    "OpRecord",
    "Part",
    "Polynomials",
    "Ragged",
    "RecordedRun",
    "State",
    "Storage",
    "UnknownOp",
    "Unreached",
    "WeightSource",
    "activation_parts",
    "atoms_of",
    "closed_form",
    "cost_of",
    "model_tensor",
    "module_of",
    "numel",
    "shown",
    "sizes",
    "total",
    "unreached_lines",
    "value_axes",
]  # fmt: skip
