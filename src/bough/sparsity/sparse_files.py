"""Files of sparse models: safetensors with encoded weights, gzipped on request; and the true sizes of all formats."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bough.arguments import check_arguments
from bough.errors import CheckpointError
from bough.sparsity.attached_masks import plain_state
from bough.sparsity.formats import FORMATS, format_named
from bough.storage import make_folder, write_files
from bough.storage.schema import Invalid, items, one_of, read_json, record, table, text, whole

_GZIP = b"\x1f\x8b"
_SCHEMA = record(
    {"version": one_of(1), "format": text, "shapes": table(items(whole())), "dtypes": table(text), "same": table(text)}
)
_KEY, _SEPARATOR, _DENSE = "bough_sparse", "::", "dense"


def save_sparse(model: nn.Module, path: str | Path, *, format: str = "bitmask", compress: bool = False) -> int:
    """Write a model's parameters and buffers to one file, with sparse weights in a storage format; return its bytes.

    Parameters with zeros are encoded where that takes fewer bytes than all elements do; the rest is stored as it is. Masks that
    are attached are not stored: zeros are.

    Args:
        model: with or without masks attached.
        path: of the file, which is replaced.
        format: "dense", "coo", "csr", "bitmask" or "block" (4 x 4).
        compress: gzip the file.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: an unknown format.
        WriteError: the file can not be written.

    Example:
        >>> import torch, tempfile, pathlib
        >>> net = torch.nn.Linear(64, 64)
        >>> _ = net.weight.data.mul_(torch.rand(64, 64) > 0.9)
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "net.sparse"
        >>> save_sparse(net, file) < save_sparse(net, file, format="dense")
        True
    """
    check_arguments(save_sparse, locals())
    state = plain_state(model)
    format_named(format)
    make_folder(Path(path).absolute().parent)
    write_files([(Path(path), lambda part: write_encoded(part, state, format, compress=compress))])
    return Path(path).stat().st_size


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict that `save_sparse` wrote, as dense tensors, bit for bit: for `model.load_state_dict`.

    Args:
        path: of the file, compressed or not.

    Raises:
        ArgumentError: an argument of another type.
        CheckpointError: the file is missing, damaged, or of another kind.

    Example:
        >>> import torch, tempfile, pathlib
        >>> net = torch.nn.Linear(4, 2)
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "net.sparse"
        >>> _ = save_sparse(net, file)
        >>> torch.equal(load_sparse(file)["weight"], net.weight)
        True
    """
    check_arguments(load_sparse, locals())
    return read_encoded(Path(path))


def write_encoded(path: Path, state: Mapping[str, Tensor], format: str, *, compress: bool = False) -> None:
    """Write tensors to a file, those with zeros encoded where that takes fewer bytes; the file is not written atomically.

    Raises:
        PlanError: an unknown format.
    """
    format_named(format)
    parts, meta = _encoded(state, format)
    _write(path, parts, meta, compress)


def read_encoded(file: Path) -> dict[str, Tensor]:
    """Return the tensors that `write_encoded` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or of another kind.
    """
    try:
        with _uncompressed(file) as plain, safe_open(str(plain), "pt") as opened:
            meta = _SCHEMA(read_json((opened.metadata() or {}).get(_KEY, "")), "")
            found: dict[str, dict[str, Tensor]] = {}
            for key in opened.keys():  # noqa: SIM118 - not a dict
                name, _, part = key.rpartition(_SEPARATOR)
                found.setdefault(name, {})[part] = opened.get_tensor(key)
        state = {name: _decoded(parts, meta, name) for name, parts in found.items()}
        return {**state, **{name: state[first] for name, first in meta["same"].items()}}
    except (OSError, EOFError, SafetensorError, Invalid, KeyError, IndexError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(f"{file} is no file that save_sparse wrote, or is damaged: {reason}") from None


def file_sizes(model: nn.Module) -> dict[str, dict[str, int]]:
    """Return the bytes of a model's file in each storage format, as written and gzipped: {format: {"bytes", "gzip"}}.

    The files are written, to a temporary folder, and measured.

    Args:
        model: with or without masks attached.

    Raises:
        ArgumentError: an argument of another type.

    Example:
        >>> import torch
        >>> sizes = file_sizes(torch.nn.Linear(8, 8))
        >>> sorted(sizes), sizes["dense"]["bytes"] >= 4 * 72
        (['bitmask', 'block', 'coo', 'csr', 'dense'], True)
    """
    check_arguments(file_sizes, locals())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        return {
            name: {kind: save_sparse(model, place, format=name, compress=kind == "gzip") for kind in ("bytes", "gzip")}
            for name in FORMATS
        }


def is_encoded(path: Path) -> bool:
    """Return whether a file is gzipped, or a safetensors file whose header says that its tensors are encoded.

    Raises:
        OSError, SafetensorError: the file can not be read.
    """
    with open(path, "rb") as opened:
        if opened.read(2) == _GZIP:
            return True
    with safe_open(str(path), "pt") as opened_tensors:
        return _KEY in (opened_tensors.metadata() or {})


def _encoded(state: Mapping[str, Tensor], format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of the file and its metadata; a tensor that has several names is stored once."""
    parts: dict[str, Tensor] = {}
    shapes, dtypes, same = {}, {}, {}
    stored: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        first = stored.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name) if tensor.numel() else name
        if first != name:
            same[name] = first
            continue
        shapes[name], dtypes[name] = list(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        dense = {_DENSE: tensor.detach().cpu().contiguous().clone()}
        encoded = FORMATS[format].encode(dense[_DENSE]) if format != "dense" and tensor.dim() > 1 else dense
        smaller = encoded if _bytes(encoded) < _bytes(dense) else dense
        parts.update({f"{name}{_SEPARATOR}{part}": value.contiguous() for part, value in smaller.items()})
    meta = {"version": 1, "format": format, "shapes": shapes, "dtypes": dtypes, "same": same}
    return parts, {_KEY: json.dumps(meta)}


def _decoded(parts: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> Tensor:
    if _DENSE in parts:
        return parts[_DENSE]
    shape, dtype = tuple(meta["shapes"][name]), getattr(torch, meta["dtypes"][name])
    return FORMATS[meta["format"]].decode(parts, shape, dtype)


def _bytes(parts: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in parts.values())


def _write(path: Path, parts: dict[str, Tensor], meta: dict[str, str], compress: bool) -> None:
    save_file(parts, str(path), meta)
    if compress:
        content = path.read_bytes()
        path.write_bytes(gzip.compress(content, 9, mtime=0))


@contextmanager
def _uncompressed(file: Path) -> Iterator[Path]:
    """Yield the path of the file's content without gzip."""
    with open(file, "rb") as opened:
        zipped = opened.read(2) == _GZIP
    if not zipped:
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain"
        plain.write_bytes(gzip.decompress(file.read_bytes()))
        yield plain
