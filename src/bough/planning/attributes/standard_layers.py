"""What torch's own layers say about their widths, read off their new weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


def refresh(module: nn.Module) -> None:
    """Sets the integers that a standard layer keeps about its weights to what they are now."""
    for key, value in _widths(module, _weight(module)):
        if key in module.__dict__:  # what a class computes (a property) it goes on to compute
            setattr(module, key, value)


_NAMES: tuple[tuple[type | tuple[type, ...], tuple[str, ...]], ...] = (
    (nn.Linear, ("out_features", "in_features")),
    (nn.modules.conv._ConvNd, ("in_channels", "out_channels")),
    (nn.modules.batchnorm._NormBase, ("num_features",)),
    ((nn.LayerNorm, nn.RMSNorm), ("normalized_shape",)),
    (nn.GroupNorm, ("num_channels",)),
    (nn.Embedding, ("num_embeddings", "embedding_dim")),
    (nn.MultiheadAttention, ("embed_dim", "head_dim", "kdim", "vdim")),
    (nn.RNNBase, ("input_size", "hidden_size", "proj_size")),
    (nn.RNNCellBase, ("hidden_size", "input_size")),
)


def layer_widths(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the attributes that `refresh` may set on a module."""
    return next((names for kind, names in _NAMES if isinstance(module, kind)), ())


def _widths(module: nn.Module, weight: Tensor | None) -> Iterator[tuple[str, Any]]:
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if isinstance(module, nn.Linear):
        yield from zip(("out_features", "in_features"), shape, strict=True)
    elif isinstance(module, nn.modules.conv._ConvNd):
        outer, inner = shape[0], shape[1] * module.groups
        yield from zip(("in_channels", "out_channels"), (outer, inner) if module.transposed else (inner, outer), strict=True)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        statistics = weight if weight is not None else module.running_mean
        if statistics is not None:
            yield "num_features", statistics.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and shape:
        yield "normalized_shape", shape
    elif isinstance(module, nn.GroupNorm) and shape:
        yield "num_channels", shape[0]
    elif isinstance(module, nn.Embedding):
        yield from zip(("num_embeddings", "embedding_dim"), shape, strict=True)
    elif isinstance(module, nn.MultiheadAttention):
        queries = module.in_proj_weight if module._qkv_same_embed_dim else module.q_proj_weight
        embed = queries.shape[1]  # what comes in; the output may be narrower
        yield "embed_dim", embed
        yield "head_dim", module.out_proj.weight.shape[1] // module.num_heads
        if module._qkv_same_embed_dim:
            yield "kdim", embed
            yield "vdim", embed
    elif isinstance(module, nn.RNNBase):
        yield from _recurrent(module)
    elif isinstance(module, nn.RNNCellBase):
        yield "hidden_size", module.weight_hh.shape[1]
        yield "input_size", module.weight_ih.shape[1]


_RECURRENT = (  # weight of the first layer, dim, what it gives
    ("weight_ih_l0", 1, "input_size"),
    ("weight_hh_l0", 1, "hidden_size"),
    ("weight_hr_l0", 1, "hidden_size"),
    ("weight_hr_l0", 0, "proj_size"),
)


def _recurrent(module: nn.RNNBase) -> Iterator[tuple[str, Any]]:
    for name, dim, attribute in _RECURRENT:
        weight = _weight(module, name)
        if weight is not None and name not in module.__dict__:  # there: what a hook computed before the cut
            yield attribute, weight.shape[dim]


def flatten(model: nn.Module) -> None:
    """Puts the weights of each recurrent layer in one piece of memory, where cuDNN wants them so."""
    for module in model.modules():
        # weights that are computed again as it runs are then put there by the layer itself
        if isinstance(module, nn.RNNBase) and all(isinstance(w, nn.Parameter) for w in module._flat_weights):
            module.flatten_parameters()


def _weight(module: nn.Module, name: str = "weight") -> Tensor | None:
    """A weight; of a parametrized one a copy is asked, as computing it may change the parametrization's buffers."""
    if parametrize.is_parametrized(module, name):
        computed: Tensor = copy.deepcopy(module.parametrizations[name])()  # type: ignore[index,operator]
        return computed
    return getattr(module, name, None)
