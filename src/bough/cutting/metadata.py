"""What torch's own layers say about their widths, read off their new weights."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.utils import parametrize


def refresh(module: nn.Module) -> None:
    """Sets the integers that a standard layer keeps about its weights to what they are now."""
    weight = _weight(module)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.modules.conv._ConvNd):
        outer, inner = weight.shape[:2]  # type: ignore[union-attr]
        if module.transposed:
            module.in_channels, module.out_channels = outer, inner * module.groups
        else:
            module.in_channels, module.out_channels = inner * module.groups, outer
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        held = weight if weight is not None else module.running_mean
        if held is not None:
            module.num_features = held.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if weight is not None:
            module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        if weight is not None:
            module.num_channels = weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.MultiheadAttention):
        queries = module.in_proj_weight if module._qkv_same_embed_dim else module.q_proj_weight
        module.embed_dim = queries.shape[1]  # what comes in; the output may be narrower
        module.head_dim = module.out_proj.weight.shape[1] // module.num_heads
        if module._qkv_same_embed_dim:
            module.kdim = module.vdim = module.embed_dim


def _weight(module: nn.Module) -> Tensor | None:
    """The weight; of a parametrized one a copy is asked, as computing it may change the parametrization's buffers."""
    if parametrize.is_parametrized(module, "weight"):
        computed: Tensor = copy.deepcopy(module.parametrizations["weight"])()  # type: ignore[index,operator]
        return computed
    return getattr(module, "weight", None)
