"""What a model keeps from one call to the next: tensors and numbers in buffers, attributes and containers of its modules."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from bough.tracing.capture.attribute_numbers import DICTS, MACHINERY, is_sequence, opaque

_DEPTH = 3
SINGLE = (Tensor, int, float, str, type(None))
_TORCH_OWN = frozenset(("_flat_weights", "_flat_weight_refs"))  # of recurrent layers: their parameters once more


def attribute_values(module: nn.Module, kinds: tuple[type, ...] = SINGLE) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the values in the attributes of one module, those inside containers and plain objects included.

    The name of a value in a container is that of the attribute with the keys in brackets, such as `hidden[0]`. Of single
    values (tensors, numbers, texts, None), those of `kinds`.
    """
    for key, value in module.__dict__.items():
        if key in MACHINERY or key in _TORCH_OWN:
            continue
        if not isinstance(value, SINGLE):
            yield from _within(key, value, kinds, 0, set())
        elif isinstance(value, kinds):
            yield key, value


def _within(name: str, value: Any, kinds: tuple[type, ...], depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if opaque(value) or depth == _DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    if kind in DICTS:
        items: Any = value.items()
    elif is_sequence(kind) or kind is deque:
        items = enumerate(value)
    elif isinstance(getattr(value, "__dict__", None), dict) and not kind.__module__.startswith("torch."):
        items = value.__dict__.items()
    else:
        return
    for key, inner in list(items):
        if not isinstance(inner, SINGLE):
            yield from _within(f"{name}[{key}]", inner, kinds, depth + 1, seen)
        elif isinstance(inner, kinds):
            yield f"{name}[{key}]", inner


def state_after_run(model: nn.Module) -> dict[str, Any]:
    """Return the tensors, numbers, texts and None that `model` holds now, by the names of their places."""
    found: dict[str, Any] = {}
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        for places in (module._parameters.items(), module._buffers.items(), attribute_values(module)):
            found.update({dot + key: value for key, value in places})
    return found


def same_form(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a model holds tensors of the same shapes, and the same numbers and texts, at the same places."""
    return _form(before) == _form(after)


def _form(state: Mapping[str, Any]) -> dict[str, Any]:
    form: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            form[name] = tuple(map(int, value.shape))
        else:
            form[name] = str(int(value)) if isinstance(value, int) else repr(value)
    return form
