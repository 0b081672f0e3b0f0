"""Supernets of the zoo: ordering units changes no output, and extracted subnets equal the supernet at their widths.

    python -m benchmarks.supernet_equal

Each model has random weights in float32. Errors are the largest difference of an output, over the largest output or 1.
Models that have nothing elastic, or can not be copied, are listed with the reason. Resumable: one JSON line a model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import bough
from benchmarks.harness import about
from bough.calls import Call, as_calls
from bough.tracing.capture.run import state_names
from bough.tracing.capture.tree import Returned
from tests.test_library_models import ZOO as LIBRARY
from tests.zoo import randomize, small, small_recurrent, small_sequence

RESULTS = Path(__file__).parent / "results" / "supernet_equal.json"
SMALL = {**small.ZOO, **small_recurrent.ZOO, **small_sequence.ZOO}
ZOO: dict[str, Callable[[], Any]] = {**{f"small:{n}": build for n, build in SMALL.items()}, **LIBRARY}


def outputs(model: nn.Module, call: Call) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    method = getattr(model, call.method)
    with torch.no_grad():
        return Returned.of(method(*call.args, **call.kwargs), state_names(model, method)).compared()


def error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    if found.keys() != expected.keys():
        raise ValueError("other outputs")
    pairs = [(found[k].double(), expected[k].double()) for k in expected if expected[k].numel()]
    scale = max([1.0, *(float(b.abs().max()) for _, b in pairs)])
    return max((float((a - b).abs().max()) for a, b in pairs), default=0.0) / scale


def measured(name: str, subnets: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    model = randomize(model.eval()).float()
    call = as_calls(inputs)[0]
    start = time.perf_counter()
    net = bough.supernet(model, inputs, importance=bough.importance.Random(1), depth=True)
    seconds = time.perf_counter() - start
    ordered = error(outputs(net.model, call), outputs(model, call))
    rng, errors = np.random.default_rng(0), []
    for subnet in [net.smallest, *(net.sample(rng) for _ in range(subnets))]:
        with net.at(subnet) as module:
            here = outputs(module, call)
        errors.append(error(outputs(net.extract(subnet).model, call), here))
    share = net.costs([net.smallest])[0].params / max(net.graph.cost().params, 1)
    return {
        "ordered": ordered, "extracted": max(errors), "subnets": len(errors),
        "elastic_groups": sum(len(w.groups) for w in net.space.widths), "elastic_layers": len(net.space.layers),
        "frozen": len(net.frozen), "refused": len(net.refused),
        "smallest_params": share, "seconds": round(seconds, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="names; all unless given")
    parser.add_argument("--subnets", type=int, default=3, help="random subnets of each model, beside the smallest")
    options = parser.parse_args()
    rows: dict[str, Any] = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    for name in options.models or [n for n in ZOO if n not in rows]:
        try:
            rows[name] = measured(name, options.subnets)
        except bough.BoughError as failure:
            rows[name] = {"error": f"{type(failure).__name__}: {failure}"}
        except Exception as failure:
            rows[name] = {"error": f"{type(failure).__name__}: {failure}"[:300], "bug": True}
        print(name, rows[name], flush=True)
        RESULTS.write_text(json.dumps({"about": about(), "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
