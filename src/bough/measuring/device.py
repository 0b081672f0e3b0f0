"""Names of the machine at hand."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def device_name(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """Return the machine in words: processor or GPU, number of threads, precision.

    Args:
        device: where the model runs.
        dtype: of its weights.

    Example:
        >>> device_name().endswith("threads, float32")
        True
    """
    device = torch.device(device)
    precision = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    return f"{_processor()}, {torch.get_num_threads()} threads, {precision}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
