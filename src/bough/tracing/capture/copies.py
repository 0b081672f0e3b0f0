"""Integer attributes that a copy of their module takes from elsewhere.

`copy.deepcopy` and pickling may build a module again from its constructor's arguments (`__getstate__`, `__reduce__`,
`__deepcopy__`), as the layers of einops do: what a cut sets on such a module is lost in every copy, unless the arguments
that it is built from are set with it.
"""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from bough.ops import Reason
from bough.spaces import freeze
from bough.tracing.capture.attribute_numbers import attribute_numbers, read, substituted
from bough.tracing.capture.provenance import Equation, Path, attributes_in, renamed
from bough.tracing.capture.tree import tensors_within

_PROTOCOL = "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"
_PLAIN = (object, nn.Module)


def bind_copies(model: nn.Module, equations: Sequence[Equation]) -> list[Equation]:
    """Return the equations that the arguments of rebuilt modules obey, beside those of the attributes made from them.

    Where no argument is found that a copy takes an attribute from, the axes whose sizes the attribute gives are frozen.
    """
    sources: dict[Path, tuple[Path, ...] | None] = {}
    more = []
    for equation in equations:
        for path in {a.path for a in attributes_in(equation.expression)}:
            if path not in sources:
                sources[path] = _sources(model, path)
            found = sources[path]
            if found is None:
                where = ".".join(path[1:])
                what = f"a copy of the module does not take over its integer attribute {where}"
                freeze(equation.space, Reason(what, module=path[0], where=equation.where))
            more += [
                Equation(renamed(equation.expression, path, source), equation.space, equation.where) for source in found or ()
            ]
    return more


def _sources(model: nn.Module, path: Path) -> tuple[Path, ...] | None:
    """Return the paths of the integers that a copy takes the one at `path` from, beside itself; None if there are none."""
    module = model.get_submodule(path[0])
    if not any(_copies_itself(holder) for holder in _holders(module, path)):
        return ()
    value = read(model, path)
    alike = [p for p, v in attribute_numbers(module, inner=False) if type(v) is int and v == value and p[1:] != path[1:]]
    trials: list[tuple[Path, ...]] = [(), *((p,) for p in alike), tuple(alike)]
    found = next((t for t in trials if _kept(module, ("", *path[1:]), t, value)), None)
    return None if found is None else tuple((path[0], *p[1:]) for p in found)


def _holders(module: nn.Module, path: Path) -> Iterator[Any]:
    """Yield the objects that hold the integer at `path`, from its module inwards."""
    yield module
    for end in range(2, len(path)):
        yield read(module, ("", *path[1:end]))


def _copies_itself(holder: Any) -> bool:
    """Whether the class of an object says how it is copied."""
    kind = type(holder)
    if kind in (dict, list, tuple):
        return False
    own = any(all(getattr(kind, n, None) is not getattr(plain, n, None) for plain in _PLAIN) for n in _PROTOCOL)
    return own or kind in copyreg.dispatch_table


def _kept(module: nn.Module, path: Path, sources: tuple[Path, ...], value: int) -> bool:
    """Whether a copy has another integer at `path` once it is set there and at `sources`, and shares nothing that holds it."""
    memo: dict[int, Any] = {id(t): t for t in tensors_within(vars(module))}
    memo.update({id(m): m for m in module.modules() if m is not module})
    for other in (value // 2, 2 * value, value + 1):  # a constructor may refuse some
        if other < 2:
            continue
        with substituted(module, lambda p, n, other=other: other if p == path or p in sources else n):  # type: ignore[misc]
            try:
                made = copy.deepcopy(module, dict(memo))
                shared = any(
                    a is b and type(a) is not tuple for a, b in zip(_holders(module, path), _holders(made, path), strict=True)
                )
                if not shared and all(read(made, p) == other for p in (path, *sources)):
                    return True
            except Exception:  # refused, or stored in another place of the copy
                continue
    return False
