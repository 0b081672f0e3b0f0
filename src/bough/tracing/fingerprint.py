"""Two digests of a model: of its architecture, which a plan must fit, and of its weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from bough.storage.tensors import raw_bytes

_SAMPLES = 256


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the model's class and of the names, shapes and dtypes of its state; its values do not matter.

    What modules return from `get_extra_state` does not count: it may have another shape each time.
    """
    state = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    lines = [type(model).__qualname__]
    lines += [f"{n} {tuple(t.shape)} {t.dtype}" for n, t in state.items() if not n.endswith("_extra_state")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def weights_digest(model: nn.Module) -> str | None:
    """Return a digest of the values of all parameters: equal for copies of a model on any device, other for other weights.

    Of each parameter the name, dtype, shape and 256 evenly spaced elements are looked at, so that the digest takes a few
    milliseconds whatever the model's size. It distinguishes models that were drawn or trained differently; a change of a few
    elements of a large parameter can stay unseen. Buffers do not count, because running a model may change them.

    Returns:
        16 hexadecimal digits; None where the model has no parameters or some have no values (on the meta device).
    """
    digest = hashlib.sha256()
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.device.type == "meta" or parameter.layout != torch.strided:
            return None
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
        digest.update(_sample(parameter.detach()).numpy().data)
    return digest.hexdigest()[:16] if parameters else None


def _sample(tensor: Tensor) -> Tensor:
    """The bytes of evenly spaced elements, in row-major order whatever the strides are.

    The spacing is odd: a multiple of the width of a matrix would take all elements from one column.
    """
    size = tensor.numel()
    spacing = size // _SAMPLES | 1
    if tensor.is_contiguous():
        return raw_bytes(tensor.view(-1)[::spacing].cpu())
    place = torch.arange(0, size, spacing, device=tensor.device)
    return raw_bytes(tensor[torch.unravel_index(place, tensor.shape)].cpu())
