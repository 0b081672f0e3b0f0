"""Digests of files and of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from bough.storage.tensors import raw_bytes


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, Tensor]], text: str = "") -> str:
    """Return the sha256 of a text and of the names, dtypes, shapes and all bytes of tensors, in the order given."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor.detach().cpu()).numpy().data)
    return digest.hexdigest()
