"""One model through bough with no hint, three ways: half of every group, half of the parameters, half of the MACs.

Where the model's own Python stands in the way of half, `bough.rebuild` is what its user would turn to; the result says so.
"""

from __future__ import annotations

import copy
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn

import bough
from benchmarks import harness, zoo
from benchmarks.coverage_rules import BAD

CASES: dict[str, dict[str, Any]] = {
    "keep": {"keep": 0.5},
    "params": {"budget": bough.Budget(params="50%")},
    "macs": {"budget": bough.Budget(macs="50%")},
}


def plain(text: str) -> str:
    """Without the folders of the machine at hand."""
    text = re.sub(rf"[^\s(']*/site-packages/|{re.escape(str(harness.ROOT))}/", "", text)
    return re.sub(re.escape(sys.prefix) + r"\S*/", "", text)[:400]


def tally(reasons: Iterable[object]) -> dict[str, int]:
    """Reasons and how often each is given, most often first."""
    return dict(Counter(plain(str(r)) for r in reasons).most_common())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def planned(graph: bough.Graph, scores: Any, request: dict[str, Any]) -> bough.Plan:
    """A plan that the model's Python agrees with; where such a plan can not meet the budget, one for `bough.rebuild`."""
    try:
        return bough.plan(graph, scores, **request)
    except bough.errors.BudgetError:
        plan = bough.plan(graph, scores, **request, on_conflict="rebuild")
        if plan.rebuild:
            return plan
        raise


def one_case(
    model: nn.Module, inputs: Any, precise: bool, trains: bool, graph: Any, scores: Any, request: Any
) -> dict[str, Any]:
    """Plans, cuts, verifies and runs; what stopped it is a result, too."""
    try:
        plan = planned(graph, scores, request)
    except bough.errors.BudgetError as error:
        return {"unreachable": plain(str(error))}
    except Exception as error:
        return {"failed": "plan", "cause": plain(zoo.cause(error))}
    cut = [k < t for k, t in plan.groups.values()]
    out: dict[str, Any] = {
        "groups_cut": [sum(cut), len(cut)],
        "macs": round(plan.cost.macs / max(plan.original.macs, 1), 4),
        "frozen_while_planning": tally(plan.frozen.values()),
        "rebuilt": plan.rebuild,
    }
    try:
        small = bough.rebuild(model, plan, inputs) if plan.rebuild else bough.cut(model, plan)
    except Exception as error:
        return {**out, "failed": "cut", "cause": plain(zoo.cause(error))}
    out["params"] = round(parameters(small) / parameters(model), 4)
    out["eval"] = zoo.runs(copy.deepcopy(small).eval(), inputs) or "runs"
    out["train"] = (zoo.runs(copy.deepcopy(small).train(), inputs) or "runs") if trains else "the original does not run"
    try:
        report = bough.verify(model, small, plan, inputs, **({} if precise else {"dtype": None}))
    except Exception as error:
        return {**out, "failed": "verify", "cause": plain(zoo.cause(error))}
    return {**out, "error": report.max_error, "scale": report.scale, "dtype": report.dtype, "equal": report.equal}


def work(suite: str, name: str, seed: int) -> dict[str, Any]:
    """The result of one model, as plain data."""
    try:
        model, inputs, precise = zoo.build(suite, name, seed)
    except Exception as error:
        return {"not_built": plain(zoo.cause(error))}
    trains = zoo.runs(copy.deepcopy(model).train(), inputs) is None
    out: dict[str, Any] = {"params": parameters(model), "float64": precise, "traced": False}
    start = time.process_time()
    try:
        graph = bough.trace(model, inputs)
        scores = bough.score(graph, bough.importance.Magnitude(p=2))
    except Exception as error:
        return {**out, "failed": "trace", "cause": plain(zoo.cause(error))}
    bad = [f for f in graph.frozen if any(b in f.reason for b in BAD)]
    out |= {
        "traced": True,
        "trace_cpu_s": round(time.process_time() - start, 2),
        "real": graph.real,
        "ops": len(graph.ops),
        "groups": len(graph.groups),
        "kinds": dict(Counter(g.kind for g in graph.groups)),
        "frozen": len(graph.frozen),
        "frozen_reasons": tally(re.split(r" \(", f.reason)[0] for f in graph.frozen),
        "bad_frozen": [[f.name, f.size, plain(f.reason)] for f in bad],
        "unknown_ops": tally(graph.unknown_ops),
    }
    out["cases"] = {k: one_case(model, inputs, precise, trains, graph, scores, r) for k, r in CASES.items()}
    return out
