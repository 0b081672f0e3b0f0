"""C code for microcontrollers: integer program, arena, kernels, Makefile."""

from bough.exporting.embedded.export import EmbeddedExport, export_embedded
from bough.exporting.embedded.footprint import Footprint, footprint

__all__ = ["EmbeddedExport", "Footprint", "export_embedded", "footprint"]
