"""Two cuts, one after the other, as one plan."""

from __future__ import annotations

from dataclasses import replace

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.planning.attributes import Stale
from bough.planning.plan import Plan, Scale


def compose(first: Plan, second: Plan) -> Plan:
    """The plan that cuts at once what `first`, and then `second` of the model cut by it, cut.

    Its names and indices are those of the original model, so what was cut in several steps is saved and loaded like what was
    cut in one. Equal to the two cuts bit for bit, but for factors folded in both (see `Plan.scales`), which are rounded twice.

    Raises:
        PlanError: one of them leaves layers out, which renames those behind.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> def half(model):
        ...     graph = bough.trace(model, torch.randn(1, 4))
        ...     return bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
        >>> first = half(net)
        >>> second = half(bough.cut(net, first))
        >>> bough.cut(net, compose(first, second))[0].out_features
        2
    """
    check_arguments(compose, locals())
    for plan in (first, second):
        if plan.left_out:
            raise PlanError(f"a plan that leaves out a layer ({next(iter(plan.left_out))}) can not be composed with another")
    names = first.kept.keys() | second.kept.keys()
    groups = dict(first.groups)
    for name, (kept, size) in second.groups.items():
        groups[name] = (kept, first.groups.get(name, (size, size))[1])
    return replace(
        first,
        kept={n: _composed(first.kept.get(n, {}), second.kept.get(n, {})) for n in sorted(names)},
        groups=groups,
        attributes={**first.attributes, **second.attributes},
        scales=(*first.scales, *(_moved(s, first) for s in second.scales)),
        renormalizing=tuple(dict.fromkeys((*first.renormalizing, *second.renormalizing))),
        frozen={**first.frozen, **second.frozen},
        cost=second.cost,
        original_shapes={**second.original_shapes, **first.original_shapes},
        ragged={**first.ragged, **second.ragged},
        alike={**first.alike, **second.alike},
        stale=_stale(first, second),
    )


def _stale(first: Plan, second: Plan) -> tuple[Stale, ...]:
    """What is stale after the first cut is so after both, and the second cut may have changed the sizes that it stands for."""
    known = {s.key for s in first.stale}
    return (*(replace(s, sizes=()) for s in first.stale), *(s for s in second.stale if s.key not in known))


def _composed(first: dict[int, list[int]], second: dict[int, list[int]]) -> dict[int, list[int]]:
    both = {d: [first[d][i] for i in indices] if d in first else indices for d, indices in second.items()}
    return dict(sorted({**first, **both}.items()))


def _moved(scale: Scale, first: Plan) -> Scale:
    kept = first.kept.get(scale.name, {}).get(scale.dim)
    return scale if kept is None else replace(scale, indices=tuple(kept[i] for i in scale.indices))
