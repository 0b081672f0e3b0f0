"""Which part of which parameter each tensor of a checkpoint is.

transformers loads some families' tensors under other names, or several as one parameter (the experts of a layer). Its own
conversion back to the names of the checkpoint is run here on tensors without memory: the results are views, and a view's place
in the parameter says which part it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bough.errors import CheckpointError

Range = tuple[int, int]
Style = Literal["converted", "own", "bare", "prefixed"]
"""How a checkpoint names its tensors: as transformers saves them, as the model does, or so without or with the base model's
prefix."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a parameter: of each dim, an index (the dim is absent in the part) or a range (first, last + 1)."""

    parameter: str
    dims: tuple[int | Range, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the part."""
        return tuple(d[1] - d[0] for d in self.dims if isinstance(d, tuple))

    @property
    def index(self) -> tuple[int | slice, ...]:
        """The index that selects the part of the parameter."""
        return tuple(d if isinstance(d, int) else slice(*d) for d in self.dims)


class Names:
    """The names of a model's tensors in checkpoints.

    Attributes:
        parameters: {name: shape} of all parameters and saved buffers of the model.
        same: {name: the first name of the same tensor}: tied parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        state = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
        first: dict[int, str] = {}
        self.same = {n: first.setdefault(id(t), n) for n, t in state.items()}
        self.parameters = {n: tuple(t.shape) for n, t in state.items()}
        self._prefix = f"{getattr(model, 'base_model_prefix', '')}."
        self._converted = _converted(model, {n: t.detach() for n, t in state.items()})
        self._by_part = {part: name for name, part in self._converted.items()}

    def find(self, name: str) -> tuple[Part, Style] | None:
        """Return what the tensor `name` of a checkpoint is, and how it is named; None if the model has no such tensor."""
        if name in self._converted:
            return self._converted[name], "converted"
        ways: tuple[tuple[Style, str], ...] = (
            ("own", name), ("bare", f"{self._prefix}{name}"), ("prefixed", name.removeprefix(self._prefix)),
        )  # fmt: skip
        for style, own in ways:
            if own in self.parameters:
                return whole(own, self.parameters[own]), style
        return None

    def name(self, part: Part, style: Style) -> str:
        """Return the name that a part has in a checkpoint of a style."""
        if style == "converted":
            return self._by_part[part]
        own = part.parameter
        return {"own": own, "bare": own.removeprefix(self._prefix), "prefixed": f"{self._prefix}{own}"}[style]


def whole(name: str, shape: Iterable[int]) -> Part:
    """Return the part that is all of a parameter."""
    return Part(name, tuple((0, n) for n in shape))


def _converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Part]:
    """Return {name in a checkpoint: part}, by transformers' conversion of a state dict on the meta device."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before version 5 transformers loaded tensors by their own names
        return {n: whole(n, t.shape) for n, t in state.items()}
    meta = {n: torch.empty(t.shape, dtype=t.dtype, device="meta") for n, t in state.items()}
    owners = {t.untyped_storage()._cdata: n for n, t in meta.items()}
    with _NoCopies():
        converted: dict[str, Any] = revert_weight_conversion(model, dict(meta))
    found: dict[str, Part] = {}
    for name, view in converted.items():
        owner = owners.get(view.untyped_storage()._cdata)
        if owner is None:
            raise CheckpointError(
                f"{type(model).__name__}: checkpoints hold {name}, which is computed from parameters and is no part of one, so "
                "files can not be cut one by one. Prune the loaded model, without --stream"
            )
        found[name] = _part(name, owner, meta[owner], view)
    return found


def _part(name: str, owner: str, parameter: Tensor, view: Tensor) -> Part:
    """Return the part of a contiguous parameter that a view of it is."""
    rest, dims = int(view.storage_offset()), list[int | Range]()
    sizes = list(zip(view.shape, view.stride(), strict=True))
    for size, stride in zip(parameter.shape, parameter.stride(), strict=True):
        start, rest = divmod(rest, stride)
        if sizes and (sizes[0][1] == stride or (sizes[0][0] == 1 and size == 1)):
            dims.append((start, start + sizes.pop(0)[0]))
        else:
            dims.append(start)
    if sizes or rest:
        raise CheckpointError(
            f"checkpoints hold {name} as {owner} with other dims, so files can not be cut one by one. Prune the loaded model, "
            "without --stream"
        )
    return Part(owner, tuple(dims))


class _NoCopies(TorchFunctionMode):
    """Makes `contiguous` return the tensor itself, so that views stay views."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("contiguous", "clone"):
            return args[0]
        return func(*args, **(kwargs or {}))
