"""The conversion of a model by another library: without its warnings, and with one clear error where it fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from bough.errors import ExportError
from bough.exporting.flat import FlatModel
from bough.logged_warnings import without_logged_warnings


@contextmanager
def conversion(flat: FlatModel, kind: str) -> Iterator[None]:
    """Silence warnings, logged ones too, while a model is converted to a file of a kind, such as "ONNX".

    Raises:
        ExportError: the conversion raised any exception; the first line of its cause is given, or of itself if it has none.
    """
    try:
        with without_logged_warnings(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        cause = error.__cause__ or error
        first = next((line for line in str(cause).splitlines() if line.strip()), "no reason given")
        raise ExportError(
            f"{type(flat.model).__name__} can not be written as {kind}: {type(cause).__name__}: {first.strip()[:400]}"
        ) from error
