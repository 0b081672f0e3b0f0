"""Kept MACs, parameters and channels against measured latency: R2 and residuals of a straight line, with a picture.

    python -m benchmarks.predictability --models resnet50 vit_s --backends onnxruntime

Batch 1, one thread, random weights, which latency does not depend on. --clock cpu takes the CPU
time of the one thread, for a machine that is not quiet. Each cut is timed turn by turn with the dense model.
Results of models and backends that are there already are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.budget_models import LATENCY, build


def main() -> None:
    import bough

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_s"], choices=LATENCY)
    parser.add_argument("--backends", nargs="+", default=["onnxruntime"], choices=["eager", "onnxruntime"])
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path, default=harness.ROOT / "benchmarks/results/predictability.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = json.loads(args.out.read_text())["rows"] if args.out.exists() else {}
    for name in args.models:
        for backend in args.backends:
            key = f"{name}, {backend}, round_to={args.round_to}"
            if key in rows:
                continue
            begin = time.perf_counter()
            found = bough.predictability(
                *build(name),
                backend=backend,
                clock=args.clock,
                points=args.points,
                round_to=args.round_to,
                repeats=args.repeats,
                progress=True,
            )
            print(key, found, sep="\n", flush=True)
            about = {"repeats": args.repeats, "seed": 0, "wall_s": round(time.perf_counter() - begin, 1), **harness.about()}
            rows[key] = {**found.to_dict(), "about": about}
            args.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
            found.plot(args.out.with_name(f"predictability_{name}_{backend}.png"))


if __name__ == "__main__":
    main()
