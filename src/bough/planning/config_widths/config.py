"""The integers that a model's configuration holds: which there are, and the same configuration with other ones.

Nothing here knows a family of models: a configuration is any object with an instance dictionary. One that is saved and
read again as plain data (`to_dict`, `from_dict`) is changed as if that had been done, with all that it derives again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Field = tuple[str, ...]  # an attribute of the configuration, and what leads on from there to an integer
_DEEPEST = 3


def integers(config: Any) -> dict[Field, int | None]:
    """The integers from 2 upwards, and the fields that are None, which may stand for one."""
    return dict(_within(config, (), 0))


def _within(holder: Any, path: Field, depth: int) -> Iterator[tuple[Field, int | None]]:
    items = enumerate(holder) if isinstance(holder, (list, tuple)) else vars(holder).items()
    for key, value in items:
        if str(key).startswith("_"):
            continue
        here = (*path, str(key))
        if value is None or (type(value) is int and value > 1):
            yield here, value
        elif depth < _DEEPEST and (isinstance(value, (list, tuple)) or _reads(value)):
            yield from _within(value, here, depth + 1)


def changed(config: Any, changes: Mapping[Field, int], stay: Mapping[Field, Iterable[int]] | None = None) -> Any:
    """A copy with some integers changed, and of some lists only some items.

    Raises:
        ValueError: a field does not keep what it is given, because the configuration derives it from others.
    """
    made = copy.deepcopy(config)
    for field, items in (stay or {}).items():
        items_before = get(made, field)
        put(made, field, type(items_before)(items_before[i] for i in items))
    for field, value in changes.items():
        put(made, field, value)
    if _reads(made) and hasattr(made, "to_dict"):
        made = type(made).from_dict(made.to_dict())
    for field, value in changes.items():
        if get(made, field) != value:
            raise ValueError(f"the config derives {'.'.join(field)} from others")
    return made


def get(holder: Any, field: Field) -> Any:
    """Return the value at `field`."""
    for key in field:
        holder = holder[int(key)] if isinstance(holder, (list, tuple)) else getattr(holder, key)
    return holder


def put(holder: Any, field: Field, value: Any) -> None:
    """Set the value at `field`; a tuple is made again."""
    owner = get(holder, field[:-1])
    if isinstance(owner, tuple):
        put(holder, field[:-1], tuple(value if i == int(field[-1]) else v for i, v in enumerate(owner)))
    elif isinstance(owner, list):
        owner[int(field[-1])] = value
    else:
        setattr(owner, field[-1], value)


def curious(config: Any) -> tuple[Any, list[Field]]:
    """A copy, and the names that are asked of it in vain: fields that a class reads where it finds them."""
    asked: list[Field] = []
    made = copy.deepcopy(config)

    def missing(self: Any, name: str) -> Any:
        if not name.startswith("_") and (name,) not in asked:
            asked.append((name,))
        raise AttributeError(f"{type(config).__name__} has no attribute {name!r}")

    if not hasattr(type(config), "__getattr__"):
        made.__class__ = type(type(config).__name__, (type(config),), {"__getattr__": missing})
    return made, asked


def _reads(value: Any) -> bool:
    return hasattr(type(value), "from_dict")
