"""Sums and agreement over the processes of torch.distributed's default process group.

All functions are collective: every process has to call them, in the same order.
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from math import prod
from typing import Any

import torch
from torch import Tensor, distributed

from bough.errors import PlanError

_CHUNK = 1 << 22  # elements that are exchanged at a time

_Layout = tuple[tuple[int, ...], torch.dtype, bool]
"""Shape, dtype, and whether the value is a constant."""


def process_rank() -> int:
    """Return the number of this process; 0 without a process group."""
    return distributed.get_rank() if _has_group() else 0


def process_count() -> int:
    """Return the number of processes; 1 without a process group."""
    return distributed.get_world_size() if _has_group() else 1


def require_process_group(what: str) -> None:
    """Raise PlanError if torch.distributed has no default process group."""
    if not _has_group():
        raise PlanError(
            f"{what} needs a process group: start the processes with torchrun or accelerate launch, and call "
            "torch.distributed.init_process_group() in each of them"
        )


def gather_objects(value: object) -> list[Any]:
    """Return the values of all processes, in the order of their ranks."""
    values: list[Any] = [None] * process_count()
    distributed.all_gather_object(values, value)
    return values


def first_process_object(value: Any) -> Any:
    """Return the value of process 0."""
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def require_equal_in_processes(value: object, what: str) -> None:
    """Raise PlanError in every process if the processes have different values.

    Args:
        value: compared by `==`; small, because every process receives the values of all.
        what: names the value in the message, with what to do.
    """
    values = gather_objects(value)
    different = [rank for rank, other in enumerate(values) if other != values[0]]
    if different:
        raise PlanError(f"process {different[0]} of {len(values)} differs from process 0 in {what}")


def add_over_processes(
    sums: MutableMapping[str, Tensor], constants: Collection[str] = (), device: torch.device | None = None
) -> None:  # fmt: skip
    """Replace each sum by its total over all processes, added in float64 in the order of ranks, so equal bit for bit in all.

    A process may lack sums that others have, such as those of experts to which its batches send no token.

    Args:
        sums: by name; changed in place.
        constants: names of values that are equal in all processes that have them; they are copied, not added.
        device: of values that this process lacks; the CPU unless given.

    Raises:
        PlanError: a sum has different shapes in two processes.
    """
    own: dict[str, _Layout] = {name: (tuple(v.shape), v.dtype, name in constants) for name, v in sums.items()}
    layouts: list[dict[str, _Layout]] = gather_objects(own)
    for name in dict.fromkeys(name for layout in layouts for name in layout):
        owners = [rank for rank, layout in enumerate(layouts) if name in layout]
        shape, dtype, is_constant = layouts[owners[0]][name]
        other = next((rank for rank in owners if layouts[rank][name][0] != shape), None)
        if other is not None:
            raise PlanError(
                f"process {other} has a sum {name} of shape {list(layouts[other][name][0])}, and process {owners[0]} one of "
                f"{list(shape)}: all processes need the same model, and data of the same form"
            )
        if is_constant and len(owners) == len(layouts):
            continue
        value = sums.get(name)
        if value is not None:
            device = value.device
        mine = value if not is_constant or process_rank() == owners[0] else None
        total = _total(mine, prod(shape), torch.promote_types(dtype, torch.float64))
        sums[name] = total.reshape(shape).to(device=device or "cpu", dtype=dtype)


def _total(value: Tensor | None, size: int, dtype: torch.dtype) -> Tensor:
    """Return the sum over processes of a tensor of `size` elements, flat; a process without a value adds nothing."""
    device = _exchange_device()
    flat = torch.zeros(size, dtype=dtype, device=device) if value is None else value.detach().to(device, dtype).reshape(-1)
    total = torch.empty_like(flat)
    for chunk, part in zip(flat.split(_CHUNK), total.split(_CHUNK), strict=True):
        parts = [torch.empty_like(chunk) for _ in range(process_count())]
        distributed.all_gather(parts, chunk.contiguous())
        part.copy_(parts[0])
        for other in parts[1:]:
            part += other
    return total


def _exchange_device() -> torch.device:
    """Return the device of tensors that the process group exchanges."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _has_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()
