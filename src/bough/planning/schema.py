"""The one schema of a plan as JSON: `Plan.from_json`, `bough.load` and all else that reads plans go by it."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from bough.cost import Cost
from bough.graph import SECONDS_AND_JOULES, Named
from bough.storage.schema import (
    Invalid,
    expected,
    flag,
    index_list,
    index_problem,
    items,
    nullable,
    number,
    one_of,
    record,
    row,
    shown,
    table,
    text,
    whole,
)

FORMAT, VERSION = "bough-plan", 1


def checked_plan(data: Any, place: str = "") -> dict[str, Any]:
    """Return the fields of a plan, as `Plan.to_dict` wrote them, with `kept` and `scales` referring to lists of indices.

    Args:
        data: what JSON gave.
        place: of the plan in the data around it, for messages.

    Raises:
        Invalid: a field is missing, unknown, of the wrong kind or contradicts another.
    """
    inside = f"{place}." if place else ""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise Invalid(f"{place or 'it'} is not a plan: its format is not {FORMAT!r}")
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        raise Invalid(f"{inside}version is {shown(data.get('version'))}, and this bough reads version {VERSION}")
    found: dict[str, Any] = _FIELDS(data, place)
    lists, shapes = found.pop("indices"), found["original_shapes"]

    def indices(name: str, dim: int, at: int, where: str) -> list[int]:
        if at >= len(lists):
            raise Invalid(f"{where} refers to list {at} of indices, and there are {len(lists)}")
        shape = shapes.get(name)
        if shape is not None and dim >= len(shape):
            raise Invalid(f"{where} is of dim {dim} of {name}, to which original_shapes gives {len(shape)} dims")
        problem = index_problem(lists[at], None if shape is None else shape[dim])
        if problem is not None:
            raise Invalid(f"{where} {problem}")
        found_indices: list[int] = lists[at]
        return found_indices

    kept = {
        name: {dim: indices(name, dim, at, f"{inside}kept[{json.dumps(name)}][{dim}]") for dim, at in dims.items()}
        for name, dims in found["kept"].items()
    }
    scales = [
        (name, dim, indices(name, dim, at, f"{inside}scales[{k}]"), factor)
        for k, (name, dim, at, factor) in enumerate(found["scales"])
    ]
    for name, (after, before) in found["groups"].items():
        if after > before:
            raise Invalid(f"{inside}groups[{json.dumps(name)}] keeps {after} units of {before}")
    return {**found, "kept": kept, "scales": scales}


def _dim(key: str, place: str) -> int:
    if len(key) > 2 or not key.isdecimal() or str(int(key)) != key:
        raise Invalid(f"{place} has the key {key!r:.40}: keys are dims, such as '0'")
    return int(key)


def _inputs(value: Any, place: str) -> int | tuple[str, ...] | None:
    if isinstance(value, list):
        return tuple(items(text)(value, place))
    if value is None or (type(value) is int and value >= 0):
        return value
    raise expected(value, place, "null, a number of arguments or a list of their names")


def _tied(value: Any, place: str) -> Named:
    if isinstance(value, list):
        name, dim = row(text, _whole_number)(value, place)
        return str(name), int(dim)
    if isinstance(value, str):
        return value
    raise expected(value, place, "a name or a list of a tensor's name and a dim")


def _whole_number(value: Any, place: str) -> int:
    if type(value) is int:
        return value
    raise expected(value, place, "a whole number")


def _cost(value: Any, place: str) -> Cost:
    return Cost(**_COST(value, place))


_COST = record(
    {f.name: whole() for f in fields(Cost) if f.default is not None},
    {f.name: nullable(number if f.name in SECONDS_AND_JOULES else whole()) for f in fields(Cost) if f.default is None},
)
_FIELDS = record(
    {
        "format": one_of(FORMAT),
        "version": one_of(VERSION),
        "fingerprint": text,
        "groups": table(row(whole(), whole())),
        "attributes": table(number),
        "scales": items(row(text, whole(), whole(), number)),
        "renormalizing": items(text),
        "frozen": table(text),
        "cost": _cost,
        "original": _cost,
        "original_shapes": table(items(whole())),
        "left_out": table(row(whole(), flag)),
        "sequences": table(items(whole())),
        "kept": table(table(whole(), key=_dim)),
        "indices": items(index_list),
    },
    {  # plans that were made before there were these fields lack them
        "ragged": table(text),
        "alike": table(text),
        "rebuild": flag,
        "notes": items(text),
        "inputs": _inputs,
        "weights": nullable(text),
        "stale": items(row(text, whole(), items(whole()), items(text))),
        "unreached": table(text),
        "tie": items(row(_tied, _tied)),
    },
)
