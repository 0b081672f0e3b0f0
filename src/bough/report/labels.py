"""Names of costs, and numbers as people read them."""

from __future__ import annotations

LABELS = {
    "params": "parameters", "macs": "MACs", "size": "size (bytes)", "activation_bytes": "activations (bytes)",
    "peak_memory": "peak memory (bytes)", "stored": "size as stored (bytes)", "flash": "constants in flash (bytes)",
    "latency_ms": "latency (ms)", "accuracy": "test accuracy (%)",
}  # fmt: skip


def number(value: float) -> str:
    """A count without, a measurement with two decimals."""
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
