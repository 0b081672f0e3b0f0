"""What is measured on the machine at hand."""

from bough.measuring.latency import Latency, latencies, latency

__all__ = ["Latency", "latencies", "latency"]
