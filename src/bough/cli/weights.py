"""Where a model's weights come from: a file, the network, or nowhere (random)."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bough.errors import CheckpointError, first_line

Source = Literal["random", "pretrained", "file", "builder"]
RANDOM: Final = "random"
PRETRAINED: Final = "pretrained"
_REACH_SECONDS = 5.0  # to find out whether a server can be reached, name look-up included
_READ_SECONDS = 10.0  # without a byte, after which a download is given up
_NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict in what they save
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the weights of a model are from; `detail` in words."""

    source: Source
    detail: str

    def to_dict(self) -> dict[str, str]:
        return {"source": self.source, "detail": self.detail}

    def __str__(self) -> str:
        return f"weights: {'RANDOM, ' if self.source == 'random' else ''}{self.detail}"


def load_weights(model: nn.Module, file: Path, reference: str) -> Weights:
    """Fill a model with the state dict of a file, safetensors or torch's (read with weights_only=True), strictly.

    Raises:
        CheckpointError: the file can not be read, or its names and shapes are not those of the model.
    """
    state = _read(file)
    tensors = model.state_dict(keep_vars=True)
    wrong = [n for n in state if n in tensors and tuple(state[n].shape) != tuple(tensors[n].shape)]
    try:
        found = model.load_state_dict({n: t for n, t in state.items() if n not in wrong}, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"--weights {file} does not fit {reference}: {first_line(error)}") from error
    loaded = {id(tensors[n]) for n in state if n in tensors}
    tied = [n for n in found.missing_keys if id(tensors.get(n)) in loaded]  # by another name
    missing = [n for n in found.missing_keys if n not in wrong and n not in tied]
    shapes = [f"{n} is {list(state[n].shape)} there and {list(tensors[n].shape)} in the model" for n in wrong]
    parts = {"missing": missing, "unexpected": found.unexpected_keys, "of another shape": shapes}
    if any(parts.values()):
        said = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in parts.items() if names)
        raise CheckpointError(f"--weights {file} does not fit {reference}: {said}")
    return Weights("file", f"from {file}")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with open(file, "rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise CheckpointError(f"--weights {file} can not be read: {error.strerror}") from None
    try:
        if file.suffix == ".safetensors" or start[8:] == b"{":
            return dict(load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises whatever it meets
        raise CheckpointError(
            f"--weights {file} is no safetensors file and no torch file of tensors alone (of a whole model, save "
            "model.state_dict())"
        ) from error
    nested = [content[k] for k in _NESTED if isinstance(content, Mapping) and _is_state(content.get(k))]
    state = content if _is_state(content) else nested[0] if len(nested) == 1 else None
    if state is None:
        keys = f" with the keys {_some(map(str, content))}" if isinstance(content, Mapping) else ""
        raise CheckpointError(f"--weights {file} holds a {type(content).__name__}{keys}, not a state dict of tensors by name")
    return dict(state)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(t, Tensor) for t in value.values())


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")


@contextmanager
def impatient(url: str) -> Iterator[bool]:
    """Try for a short time whether a server can be reached, and yield whether it can; downloads inside give up soon, too.

    Where it can not, the Hugging Face hub looks into its cache alone: it would try for most of a minute.
    """
    before, reached = socket.getdefaulttimeout(), _reached(url)
    socket.setdefaulttimeout(_READ_SECONDS)
    try:
        with _hub_offline(not reached):
            yield reached
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _hub_offline(offline: bool) -> Iterator[None]:
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reached(url: str) -> bool:
    """Return whether a server answers; in a thread, as looking up a name has no timeout of its own."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_REACH_SECONDS).close()
        except urllib.error.HTTPError:  # an answer
            pass
        except (OSError, ValueError):
            return
        answers.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_REACH_SECONDS)
    return bool(answers)
