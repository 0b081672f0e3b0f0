"""Where in the model's Python an op was called: the innermost module and the innermost line outside torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from bough.torch_internals import CALL_OF_A_MODULE

_LIBRARIES = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[2]))
_library: dict[str, bool] = {}


def here() -> tuple[object, str, int]:
    """(the innermost module being called or None, file, line)."""
    frame = sys._getframe(1)
    file, line, module = "", 0, None
    walker: object = frame
    while walker is not None:
        code = walker.f_code  # type: ignore[attr-defined]
        if code is CALL_OF_A_MODULE:
            if module is None:
                module = walker.f_locals["self"]  # type: ignore[attr-defined]
        elif not file:
            name = code.co_filename
            known = _library.get(name)
            if known is None:
                known = _library[name] = name.startswith(_LIBRARIES) or name.startswith("<")
            if not known:
                file, line = name, walker.f_lineno  # type: ignore[attr-defined]
        if file and module is not None:
            break
        walker = walker.f_back  # type: ignore[attr-defined]
    return module, file, line
