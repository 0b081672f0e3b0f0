"""The layers that can be left out, by the lists that they are entries of."""

from __future__ import annotations

from bough.errors import PlanError
from bough.graph import Graph, Layer


def layer_lists(graph: Graph) -> dict[str, list[Layer]]:
    """Return {list: its layers that can be left out}, and {layer: [layer]} for those that stand alone.

    Raises:
        PlanError: no layer can be left out.
    """
    if not graph.layers:
        raise PlanError(f"{type(graph.model).__name__} has no layers that can be left out")
    lists: dict[str, list[Layer]] = {x.container: [] for x in graph.layers if x.container is not None}
    containers = set(lists)
    for layer in graph.layers:
        if layer.container is not None or layer.name not in containers:
            lists.setdefault(layer.name if layer.container is None else layer.container, []).append(layer)
    return lists
