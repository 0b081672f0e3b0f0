"""Files of pruned models of the zoo: ONNX and ExecuTorch in float, and INT8 for convolutional nets and vision transformers.

    python -m benchmarks.exporting --suites timm small --models resnet18 vit_tiny

Besides the models of the zoo there are a U-Net and a step of a Llama with a cache, in the suite "others". Each model is cut to
half of its MACs (magnitude, no refit) and exported in a fresh process with a time limit, or with --here in one process for all,
where libraries load once; each file is run and compared as `bough.export` does. One JSON line a model goes to the out file,
where a later run finds what is done. INT8 is calibrated by the ranges of random inputs, as weights are random, too: its figures
say that files work, not what INT8 costs trained models.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import bough
from benchmarks import harness, zoo
from benchmarks.tasks.dense_prediction import UNet
from tests.zoo.transformers_text import GROUPED, Built, built, ids

OUT = harness.ROOT / "benchmarks" / "results" / "exporting.jsonl"


def unet() -> tuple[torch.nn.Module, torch.Tensor]:
    return UNet().eval(), torch.randn(2, 3, 64, 64)


def llama_step() -> Built:
    """A token of each of two sentences, after five that a cache holds."""
    model = built("llama", "CausalLM", **GROUPED)
    with torch.no_grad():
        cache = model(ids(5), use_cache=True).past_key_values
    return model, {"input_ids": ids(1), "past_key_values": cache, "use_cache": True}


OTHERS = {"unet": unet, "llama_step": llama_step}
SUITES = (*zoo.TABLES, "others")


def builders(suite: str) -> dict[str, Any]:
    """Return {model name: function that makes it and its inputs}."""
    return OTHERS if suite == "others" else zoo.suite(suite)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of an out file, the last one of each model."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({(r["suite"], r["model"]): r for r in lines}.values())


def exported(model: Any, inputs: Any, path: Path) -> dict[str, Any]:
    """Return what `bough.export` gives, or its error."""
    try:
        done = bough.export(model, inputs, path, repeats=5)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:400]}
    return {
        "largest_error": done.error, "size": done.size, "latency_ms": 1e3 * done.latency.median,
        "peak_memory": done.peak_memory, "notes": list(done.notes),
    }  # fmt: skip


def quantized(model: Any, inputs: Any) -> tuple[Any, dict[str, Any]]:
    """Return a quantized model and its errors; None and the error where it can not be made."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, *inputs.shape[1:], generator=generator) for _ in range(2)]
    try:
        done = bough.quantize(model, inputs, batches, observer="minmax", equalize=False, correct_bias=False)
    except Exception as error:
        return None, {"error": f"{type(error).__name__}: {error}"[:400]}
    worst = sorted(done.layers, key=lambda layer: layer.local)[:3]
    hurt = [{"module": x.module, "op": x.op, "local": round(x.local, 2)} for x in worst]
    return done, {"signal_to_noise": done.signal_to_noise, "trials": dict(done.trials), "worst": hurt}


def work(suite: str, name: str, seed: int) -> dict[str, Any]:
    """Prune and export one model."""
    make = builders(suite)[name]
    model, inputs = zoo.built(make, seed)[0].float(), make()[1]
    small = bough.prune(model, inputs, bough.Budget(macs="50%"), importance="l2", refit=False).model
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("onnx", "pte"):
            found[kind] = exported(small, inputs, Path(folder, f"model.{kind}"))
        image = isinstance(inputs, torch.Tensor) and inputs.dim() == 4
        if image:
            done, found["int8"] = quantized(small, inputs)
            for kind in ("onnx", "pte") if done is not None else ():
                found[f"int8_{kind}"] = exported(done, inputs, Path(folder, f"int8.{kind}"))
    return found


def worked(suite: str, name: str, seed: int) -> dict[str, Any]:
    """Return what `work` gives, or its error."""
    try:
        return work(suite, name, seed)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def main() -> int:
    parser = argparse.ArgumentParser(description="files of pruned models of the zoo")
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=SUITES)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these of the suites")
    parser.add_argument("--timeout", type=float, default=1200, help="wall seconds for one model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure what is done already, too")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--here", action="store_true", help="all in this process, without a time limit")
    parser.add_argument("--worker", nargs=2, metavar=("SUITE", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker or args.here:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
    if args.worker:
        print(json.dumps(work(*args.worker, args.seed)))
        return 0
    done = set() if args.again else {(r["suite"], r["model"]) for r in read(args.out)}
    for suite in args.suites:
        for name in builders(suite):
            if (suite, name) in done or (args.models and name not in args.models):
                continue
            if args.here:
                result = worked(suite, name, args.seed)
            else:
                worker = ["--worker", suite, name, "--seed", str(args.seed)]
                result = harness.measure("benchmarks.exporting", worker, args.timeout)
            with args.out.open("a") as out:
                out.write(json.dumps({"suite": suite, "model": name, "seed": args.seed, **result, **harness.about()}) + "\n")
            print(suite, name, json.dumps(result)[:300], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
