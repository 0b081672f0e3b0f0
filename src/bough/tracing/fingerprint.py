"""Two digests of a model: of its architecture, which a plan must fit, and of its weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_SAMPLES = 64


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

    Buffers do not count, because running a model may change them. The digest tells models apart at the speed at which memory
    is read (20 ms for 400 MB on one core); it is no defense against forgery. It takes in each parameter's name, dtype, shape,
    the sum of its bytes read as 64-bit integers, modulo 2^64, and 64 evenly spaced elements. So any one changed value changes
    the digest; values that change places within a parameter do where one of these elements is among them.

    Returns:
        16 hexadecimal digits; None where the model has no parameters or some have no values (on the meta device).
    """
    digest = hashlib.sha256()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.device.type == "meta" or parameter.layout != torch.strided:
                return None
            digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}\n".encode())
            digest.update(_summary(parameter.detach().as_subclass(Tensor)))
    return digest.hexdigest()[:16] if parameters else None


def _summary(tensor: Tensor) -> bytes:
    """The sum of a tensor's bytes as 64-bit integers, and some of its elements."""
    flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLES)]
    per_word = 8 // flat.itemsize or 1
    whole = flat.numel() - flat.numel() % per_word
    words = flat[:whole] if flat.storage_offset() * flat.itemsize % 8 == 0 else flat[:whole].clone()
    total = words.view(torch.int64).sum() if whole else torch.zeros((), dtype=torch.int64)
    ends = torch.cat([sample, flat[whole:]]).cpu()
    return int(total).to_bytes(8, "little", signed=True) + ends.view(torch.uint8).numpy().tobytes()
