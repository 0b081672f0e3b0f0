"""Models of the zoo cut to half, then verified on inputs of other shapes than those that they were traced with.

    python -m benchmarks.other_inputs --suites small transformers

Of each model: batches of 1 and of 5, and a longer sequence or a larger image where the original takes it. Two cuts to half of
every group: one traced on the example inputs alone, one on all of these inputs as calls. Each model is a fresh process with a
time limit; one JSON line each goes to the out file, and a later run does what is missing. The table beside it is made from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

import bough
from benchmarks import harness, zoo
from benchmarks.coverage_bough import plain
from benchmarks.coverage_table import markdown
from bough.tracing.capture.inputs import with_tensors
from bough.tracing.capture.tree import tensors_within

OUT = harness.ROOT / "benchmarks" / "results" / "other_inputs.jsonl"
SHAPES = ("batch 1", "batch 5", "longer or larger")
CUTS = {"one": "traced on the example alone", "calls": "traced on all of them as calls"}


def batch_of(inputs: Any, n: int) -> Any | None:
    """Inputs with a batch of `n`: what has the batch size as its first dim is taken over and over; None if nothing has."""
    sizes = [len(t) for t in tensors_within(inputs) if t.dim() > 1]
    if not sizes or n == sizes[0]:
        return None
    size = sizes[0]
    return with_tensors(inputs, lambda t: t[torch.arange(n) % size] if t.dim() and len(t) == size else t)


def enlarged(inputs: Any) -> Iterator[Any]:
    """Yield inputs of longer sequences or larger images, in ways of which a model may take one."""
    yield with_tensors(inputs, lambda t: _repeated(t, [t.dim() - 2, t.dim() - 1]) if t.dim() > 3 else t)
    yield with_tensors(inputs, lambda t: _repeated(t, [1]) if t.dim() in (2, 3) else t)
    yield with_tensors(inputs, lambda t: _repeated(t, [2]) if t.dim() == 3 else t)
    yield with_tensors(inputs, lambda t: _repeated(t, [0]) if t.dim() == 3 else t)


def _repeated(t: Tensor, dims: list[int]) -> Tensor:
    """A tensor twice as long in some dims, its values repeated."""
    return torch.cat([t, t], dims[0]) if len(dims) == 1 else _repeated(_repeated(t, dims[:1]), dims[1:])


def shapes(inputs: Any) -> str:
    return ", ".join(str(list(t.shape)) for t in tensors_within(inputs))


def others(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """The other inputs that the model takes."""
    candidates = {"batch 1": [batch_of(inputs, 1)], "batch 5": [batch_of(inputs, 5)], "longer or larger": enlarged(inputs)}
    found = {}
    for name, given in candidates.items():
        taken = (x for x in given if x is not None and shapes(x) != shapes(inputs) and zoo.runs(model, x) is None)
        chosen = next(taken, None)
        if chosen is not None:
            found[name] = chosen
    return found


def tried(work: Callable[[], Any]) -> Any:
    """What a stage gives, or what stopped it."""
    try:
        return work()
    except Exception as error:
        return {"failed": plain(zoo.cause(error))}


def cut(model: nn.Module, inputs: Any) -> tuple[nn.Module, bough.Plan]:
    graph = bough.trace(model, inputs)
    plan = bough.plan(graph, bough.score(graph, "l2"), keep=0.5)
    return bough.cut(model, plan), plan


def verified(model: nn.Module, small: nn.Module, plan: bough.Plan, inputs: Any, precise: bool) -> dict[str, Any]:
    report = bough.verify(model, small, plan, inputs, **({} if precise else {"dtype": None}))
    return {"equal": report.equal, "error": report.max_error, **({} if report.equal else {"report": plain(str(report))})}


def work(suite: str, name: str, seed: int) -> dict[str, Any]:
    """The result of one model, as plain data."""
    start = time.process_time()
    try:
        model, inputs, precise = zoo.build(suite, name, seed)
    except Exception as error:
        return {"not_built": plain(zoo.cause(error))}
    given = others(model, inputs)
    out: dict[str, Any] = {"float64": precise, "example": shapes(inputs), "shapes": {k: shapes(x) for k, x in given.items()}}
    calls = [bough.Call.of((), x) if isinstance(x, dict) else bough.Call.of(x if isinstance(x, tuple) else (x,), {})
             for x in (inputs, *given.values())]  # fmt: skip
    for kind, example in (("one", inputs), ("calls", calls)):
        made = tried(lambda example=example: cut(model, example))
        if isinstance(made, dict):
            out[kind] = made
            continue
        small, plan = made
        out[kind] = {"groups_cut": sum(k < t for k, t in plan.groups.values())}
        for label, x in {"example": inputs, **given}.items():
            out[kind][label] = tried(lambda x=x, s=small, p=plan: verified(model, s, p, x, precise))
    return {**out, "cpu_s": round(time.process_time() - start, 1)}


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of an out file, the last one of each model."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({(r["suite"], r["model"]): r for r in lines}.values())


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: how many models take each shape and verify on it, by suite, then every case that does not."""
    parts = ["# Inputs of other shapes: models cut to half of every group, verified\n"]
    parts.append("Equal of those whose original takes the shape (`python -m benchmarks.other_inputs`).\n")
    head = ["suite", "models", *(f"{shape}: {what}" for what in CUTS.values() for shape in SHAPES)]
    rows = []
    for suite in [*dict.fromkeys(r["suite"] for r in results), "all"]:
        mine = [r for r in results if suite in (r["suite"], "all")]
        row: list[object] = [suite, len(mine)]
        for kind in CUTS:
            for shape in SHAPES:
                asked = [r.get(kind, {}) for r in mine if shape in r.get("shapes", {})]
                row.append(f"{sum(bool(c.get(shape, {}).get('equal')) for c in asked)} of {len(asked)}")
        rows.append(row)
    return (
        "\n".join([*parts, markdown(head, rows), "## Not equal\n", *(f"- {line}" for r in results for line in faults(r))])
        + "\n"
    )


def faults(result: dict[str, Any]) -> Iterator[str]:
    """One line for each case of a model that is not as it should be."""
    model = f"{result['suite']}:{result['model']}"
    for key in ("not_built", "error", "timeout_s"):
        if key in result:
            yield f"{model}: {key.replace('_', ' ')}: {result[key]}"
    for kind, what in CUTS.items():
        found = result.get(kind, {})
        if "failed" in found:
            yield f"{model}, {what}: {found['failed']}"
        for shape, case in found.items():
            if isinstance(case, dict) and not case.get("equal"):
                yield f"{model}, {what}, {shape} ({result['shapes'].get(shape, result['example'])}): " + (
                    case.get("failed") or case.get("report", "")
                )


def main() -> int:
    parser = argparse.ArgumentParser(description="models cut to half, verified on inputs of other shapes")
    parser.add_argument("--suites", nargs="+", default=list(zoo.TABLES), choices=zoo.TABLES)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these of the suites")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=240, help="wall seconds for one model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure what is done already, too")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--here", action="store_true", help="all in this process, without a time limit: libraries load once")
    parser.add_argument("--worker", nargs=2, metavar=("SUITE", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        print(json.dumps(work(*args.worker, seed=args.seed)))
        return 0
    done = set() if args.again else {(r["suite"], r["model"]) for r in read(args.out)}
    every = [(s, n) for s in args.suites for n in zoo.suite(s) if (s, n) not in done and (not args.models or n in args.models)]
    about = harness.about()
    torch.set_num_threads(1)

    def one(task: tuple[str, str]) -> dict[str, Any]:
        given = ["--worker", *task, "--seed", str(args.seed)]
        found = work(*task, args.seed) if args.here else harness.measure("benchmarks.other_inputs", given, args.timeout)
        return {"suite": task[0], "model": task[1], "seed": args.seed, **found, **about}

    with Progress() as bar, ThreadPoolExecutor(args.jobs) as pool, args.out.open("a") as out:
        row = bar.add_task("other inputs", total=len(every))
        for result in pool.map(one, every):
            out.write(json.dumps(result) + "\n")
            out.flush()
            bar.update(row, advance=1, description=f"{result['suite']}:{result['model']}")
    results = read(args.out)
    args.out.write_text("".join(json.dumps(r) + "\n" for r in results))
    args.out.with_suffix(".md").write_text(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
