"""Constant arrays of the C code; equal ones are written once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PER_LINE = 24


class Constants:
    """Collects arrays under names, and writes their definitions.

    Attributes:
        bytes: of the arrays that are written.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[str, bytes], str] = {}
        self._texts: list[str] = []
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, name: str, values: NDArray[Any]) -> str:
        """Return the C name of an array of int8, int16 or int32."""
        flat = np.ascontiguousarray(values).reshape(-1)
        key = (flat.dtype.str, flat.tobytes())
        if key not in self._names:
            self._names[key] = name
            self._texts.append(f"static const {flat.dtype.name}_t {name}[{flat.size}] = {{\n{numbers(flat)}\n}};\n")
            self.bytes += flat.nbytes
        return self._names[key]

    def text(self) -> str:
        """Return all definitions."""
        return "\n".join(self._texts)


def numbers(values: NDArray[Any]) -> str:
    """Return numbers with commas, in lines; the least int32 as an expression, since C has no such literal."""
    words = [str(v) if v != -(2**31) else "(-2147483647 - 1)" for v in values.tolist()]
    return ",\n".join("    " + ", ".join(words[i : i + _PER_LINE]) for i in range(0, len(words), _PER_LINE))
