"""Checkpoints larger than memory: pruned file by file, and planned without weights.

    python -m benchmarks.streaming --folder /tmp/streaming --sizes 7b --kills 10

*Files*: a Llama of 7 B shapes in bfloat16 with random weights is written shard by shard, copied with `cp` (and synced), and
pruned to 70 % of its parameters by `bough.prune_checkpoint` in a fresh process, whose peak memory and time are measured.
*Data*: a checkpoint of 3.5 GB is pruned by scores on data (Wanda, 32 tokens), with the weights of one block in memory.
*Refit*: the same, and the weights of the cut model are solved block by block (1,024 tokens).
*Kills*: a smaller checkpoint is pruned in a process that is killed (SIGKILL) at random moments and started again; its files
are held against those of a run that nobody killed, byte for byte. *Plans*: the configs of 70 B, 405 B and 235 B (128 experts
a layer) are traced and planned to 70 % on the meta device, with random scores. `cpu_seconds` are of the whole process, imports
included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from bough.storage.safetensors_file import header_bytes
from bough.storage.tensors import raw_bytes
from tests.zoo.shim import declare_torchvision_ops

LLAMA: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 32000},
    "3b": {"hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 20, "num_attention_heads": 20,
           "num_key_value_heads": 20, "vocab_size": 32000},
    "300m": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 20, "num_attention_heads": 16,
             "num_key_value_heads": 8, "vocab_size": 32000},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 128256},
    "405b": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
             "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
QWEN3_235B = {
    "hidden_size": 4096, "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 94,
    "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "vocab_size": 151936,
}  # fmt: skip
BUDGET, SHARD = "70%", 4 << 30


def model_of(size: str) -> Any:
    """A model on the meta device."""
    declare_torchvision_ops()
    import transformers

    made = transformers.Qwen3MoeConfig(**QWEN3_235B) if size == "235b" else transformers.LlamaConfig(**LLAMA[size])
    made.architectures = ["Qwen3MoeForCausalLM" if size == "235b" else "LlamaForCausalLM"]
    made.dtype = torch.bfloat16
    with torch.device("meta"):
        return getattr(transformers, made.architectures[0])._from_config(made, dtype=torch.bfloat16).eval()


def write_checkpoint(folder: Path, size: str) -> None:
    """Random weights, uniform in +-0.02, shard by shard."""
    folder.mkdir(parents=True, exist_ok=True)
    model = model_of(size)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        if filled > SHARD:
            shards, filled = [*shards, []], 0
        shards[-1].append(name)
        filled += 2 * torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(0)
    where: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        with open(folder / file, "wb") as out:
            out.write(header_bytes([(n, "BF16", shapes[n]) for n in names], {"format": "pt"}))
            for name in names:
                value = torch.empty(shapes[name], dtype=torch.bfloat16).uniform_(-0.02, 0.02, generator=generator)
                out.write(raw_bytes(value).numpy().data)
                where[name] = file
    total = 2 * sum(torch.Size(s).numel() for s in shapes.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    model.config.save_pretrained(folder)


def synced() -> None:
    """Write what is cached to the disk, and forget it where the system allows."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def windows(length: int = 8) -> list[dict[str, torch.Tensor]]:
    """Calibration data: 4 windows of random tokens."""
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 32000, (1, length), generator=generator)} for _ in range(4)]


def prune(source: str, out: str, on_data: bool = False, refit: bool = False) -> None:
    """In a fresh process: prune, and tell time and memory."""
    declare_torchvision_ops()
    import bough

    start = time.perf_counter()
    options: dict[str, Any] = {"importance": "wanda", "data": windows(256 if refit else 8)} if on_data else {}
    options |= {"refit": True} if refit else {}
    result = bough.prune_checkpoint(source, bough.Budget(params=BUDGET), out, **options)
    refitted = {} if result.refit is None else {"weights_refitted": len(result.refit.layers)}
    os.sync()
    print(json.dumps({
        "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time(),
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "bytes_before": result.bytes_before, "bytes_after": result.bytes_after, "resumed": result.resumed,
        "params_kept": result.plan.cost.params / result.plan.original.params, **refitted,
    }))  # fmt: skip


def plan(size: str) -> None:
    """In a fresh process: trace and plan on the meta device."""
    model = model_of(size)
    import bough
    from bough.streaming import example_inputs

    start = time.perf_counter()
    graph = bough.trace(model, example_inputs(model))
    scores = bough.importance.Random(0)(graph)
    found = bough.plan(graph, scores, bough.Budget(params=BUDGET), uniform=True)
    print(json.dumps({
        "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time(),
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "params": found.original.params, "params_kept": found.cost.params / found.original.params,
    }))  # fmt: skip


def files(folder: Path, size: str, rounds: int) -> dict[str, Any]:
    """Copy and prune one checkpoint in turns, so that each run of bough has a copy before it and one after it."""
    source, copy, out = folder / size, folder / f"{size}-copy", folder / f"{size}-small"
    if not (source / "config.json").exists():
        write_checkpoint(source, size)
    copies: list[float] = []
    runs: list[dict[str, Any]] = []
    for _ in range(rounds):
        copies.append(_copied(source, copy))
        synced()
        shutil.rmtree(out, ignore_errors=True)
        runs.append(harness.measure("benchmarks.streaming", ["--prune", str(source), str(out)], 3600))
        again = None if "error" in runs[-1] else _loads(out)
        shutil.rmtree(out, ignore_errors=True)
    copies.append(_copied(source, copy))
    seconds = [r.get("seconds", 0.0) for r in runs]
    return {
        **runs[-1], "seconds": seconds, "cp_seconds": copies, "config_fits_files": again,
        "times_cp": [s / ((before + after) / 2) for s, before, after in zip(seconds, copies, copies[1:], strict=False)],
    }  # fmt: skip


def _copied(source: Path, copy: Path) -> float:
    """The seconds in which `cp` copies a folder, until it is on the disk."""
    synced()
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(copy)], check=True)
    os.sync()
    taken = time.perf_counter() - start
    shutil.rmtree(copy)
    return taken


def on_data(folder: Path, size: str, *flags: str) -> dict[str, Any]:
    """Prune one checkpoint by scores on data."""
    source, out = folder / size, folder / f"{size}-small"
    if not (source / "config.json").exists():
        write_checkpoint(source, size)
    shutil.rmtree(out, ignore_errors=True)
    found = harness.measure("benchmarks.streaming", ["--on-data", str(source), str(out), *flags], 3600)
    again = None if "error" in found else _loads(out)
    shutil.rmtree(out, ignore_errors=True)
    return {**found, "config_fits_files": again}


def _loads(folder: Path) -> bool:
    """Whether the config, the index and the files agree in all names and shapes."""
    declare_torchvision_ops()
    from bough.streaming.architecture import architecture
    from bough.streaming.names import Names
    from bough.streaming.pieces import placed
    from bough.streaming.shards import read_shards

    return not placed(Names(architecture(folder)), read_shards(folder)).unknown


def kills(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill a run at random moments until it has been killed so often, and compare with one that is not."""
    source, out, whole = folder / "300m", folder / "killed", folder / "whole"
    if not (source / "config.json").exists():
        write_checkpoint(source, "300m")
    for place in (out, whole):
        shutil.rmtree(place, ignore_errors=True)
    seconds = harness.measure("benchmarks.streaming", ["--prune", str(source), str(whole)], 3600)["seconds"]
    draw, done, attempts = random.Random(seed), 0, 0
    command = [sys.executable, "-m", "benchmarks.streaming", "--prune", str(source), str(out)]
    while True:
        attempts += 1
        process = subprocess.Popen(command, cwd=harness.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done < count:
            try:
                process.wait(draw.uniform(4.0, 6.0 + 1.2 * seconds))
                shutil.rmtree(out)  # it ended before it was killed: begin again
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
            continue
        if process.wait() != 0:
            raise RuntimeError("the run that was not killed failed")
        break
    names = sorted(p.name for p in whole.iterdir())
    same = names == sorted(p.name for p in out.iterdir()) and all(
        (whole / n).read_bytes() == (out / n).read_bytes() for n in names
    )
    for place in (out, whole):
        shutil.rmtree(place)
    return {"kills": done, "processes": attempts, "seconds_uninterrupted": seconds, "files": len(names), "identical": same}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bough-streaming"))
    parser.add_argument("--sizes", nargs="*", default=["7b"])
    parser.add_argument("--plans", nargs="*", default=["70b", "405b", "235b"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2, help="runs of the largest checkpoint, with copies in between")
    parser.add_argument("--prune", nargs=2, default=None)
    parser.add_argument("--on-data", nargs=2, default=None)
    parser.add_argument("--data", nargs="*", default=["3b"])
    parser.add_argument("--refit", nargs="*", default=["300m"])
    parser.add_argument("--refitting", action="store_true")
    parser.add_argument("--plan", default=None)
    given = parser.parse_args()
    if given.prune:
        prune(*given.prune)
        return
    if given.on_data:
        prune(*given.on_data, on_data=True, refit=given.refitting)
        return
    if given.plan:
        plan(given.plan)
        return
    for size in given.sizes:
        record("files", size, files(given.folder, size, given.rounds))
    for size in given.data:
        record("data", size, on_data(given.folder, size))
    for size in given.refit:
        record("refit", size, on_data(given.folder, size, "--refitting"))
    for size in given.plans:
        record("plans", size, harness.measure("benchmarks.streaming", ["--plan", size], 600))
    if given.kills:
        record("kills", "300m", kills(given.folder, given.kills, 0))


def record(part: str, name: str, found: dict[str, Any]) -> None:
    """Add one measurement to the results."""
    path = harness.ROOT / "benchmarks" / "results" / "streaming.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault(part, {})[name] = {**harness.about(), **found}
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(part, name, found, flush=True)


if __name__ == "__main__":
    main()
