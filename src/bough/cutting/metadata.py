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
        module.embed_dim = module.out_proj.weight.shape[0]
        module.head_dim = module.out_proj.weight.shape[1] // module.num_heads
        if module._qkv_same_embed_dim:
            module.kdim = module.vdim = module.embed_dim
    elif isinstance(module, nn.RNNBase):
        _refresh_recurrent(module)
    elif isinstance(module, nn.RNNCellBase):
        module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]


_RECURRENT = (  # weight of the first layer, dim, what it tells
    ("weight_ih_l0", 1, "input_size"),
    ("weight_hh_l0", 1, "hidden_size"),
    ("weight_hr_l0", 1, "hidden_size"),
    ("weight_hr_l0", 0, "proj_size"),
)


def _refresh_recurrent(module: nn.RNNBase) -> None:
    for name, dim, attribute in _RECURRENT:
        weight = _weight(module, name)
        if weight is not None and name not in module.__dict__:  # there: what a hook computed before the cut
            setattr(module, attribute, weight.shape[dim])


def flatten(model: nn.Module) -> None:
    """Puts the weights of each recurrent layer in one piece of memory, where cuDNN wants them so."""
    for module in model.modules():
        # weights that are computed anew as it runs are then put there by the layer itself
        if isinstance(module, nn.RNNBase) and all(isinstance(w, nn.Parameter) for w in module._flat_weights):
            module.flatten_parameters()


def _weight(module: nn.Module, name: str = "weight") -> Tensor | None:
    """A weight; of a parametrized one a copy is asked, as computing it may change the parametrization's buffers."""
    if parametrize.is_parametrized(module, name):
        computed: Tensor = copy.deepcopy(module.parametrizations[name])()  # type: ignore[index,operator]
        return computed
    return getattr(module, name, None)
