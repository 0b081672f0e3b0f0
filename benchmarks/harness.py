"""What benchmarks share: a measurement in a fresh process, and the machine and versions it was made with."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def measure(module: str, arguments: list[str], timeout: float, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """`python -m module arguments`, whose last line is JSON; a failure or a timeout is a result, too."""
    command = [sys.executable, "-m", module, *arguments]
    env = {**os.environ, **(environment or {})}
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False, env=env)
    except subprocess.TimeoutExpired:
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = now.ru_utime + now.ru_stime - children.ru_utime - children.ru_stime
        return {"timeout_s": timeout, "cpu_s_when_stopped": used}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gb": round(memory, 1), "load_before": round(os.getloadavg()[0], 2)}


def versions() -> dict[str, Any]:
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    out: dict[str, Any] = {"python": platform.python_version()}
    for package in ("torch", "torch-pruning", "torchvision", "transformers", "scipy", "onnx", "onnxruntime"):
        try:
            out[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            out[package] = None
    return {**out, "bough_commit": git("rev-parse", "HEAD"), "bough_src_changed": bool(git("status", "--porcelain", "src"))}


def about() -> dict[str, Any]:
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "versions": versions()}
