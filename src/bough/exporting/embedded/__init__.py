"""C code for microcontrollers: integer program, arena, kernels, Makefile."""

from bough.exporting.embedded.export import EmbeddedExport, export_embedded

__all__ = ["EmbeddedExport", "export_embedded"]
