"""What is measured on the machine at hand."""

from bough.measuring.backends import runner
from bough.measuring.energy import calibrate
from bough.measuring.latency import Latency, latencies, latency
from bough.measuring.table import device_name, measure_table

__all__ = ["Latency", "calibrate", "device_name", "latencies", "latency", "measure_table", "runner"]
