"""Masks as a parametrization of the model: masked elements read as zero, and get no gradient, in any training loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bough.arguments import check_arguments
from bough.cutting.cut import copied
from bough.errors import PlanError
from bough.recovery.regularize import Masks, apply_masks_, check_masks


class Mask(nn.Module):
    """Parametrization that reads masked elements as zero; their gradients are zero, too.

    Args:
        mask: bool, True where the element stays.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros where it is masked, also where the stored value is not finite."""
        return torch.where(self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is stored when a weight is assigned."""
        return self.forward(weight)


def attach_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Attach masks to a model in place, as parametrizations that any training loop keeps; return the model.

    The parameters stay the same objects, so an optimizer that holds them, and its state, stay valid. A parameter that several
    modules share is masked in all of them. `detach_masks_` takes the masks away and leaves the zeros.

    Args:
        model: is changed: masked elements become zero, and `weight` is computed from `parametrizations.weight.original`.
        masks: {parameter: bool tensor of its shape, False where it is zero}, from `sparsify`, `magnitude_masks` or `masks_of`.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: a mask has another shape than its parameter, the model has no such parameter, or it has masks already.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        >>> _ = attach_masks_(net, {"weight": torch.tensor([[True, False]])})
        >>> net(torch.ones(1, 2)).sum().backward()
        >>> sgd.step()
        >>> net.weight[0, 1].item(), detach_masks_(net).weight[0, 1].item()
        (0.0, 0.0)
    """
    check_arguments(attach_masks_, locals())
    if any(True for _ in _masked_places(model)):
        raise PlanError(f"{type(model).__name__} has masks already: detach_masks_(model) first")
    parameters = check_masks(model, masks)
    places = {id(parameters[name]): (name, mask) for name, mask in masks.items()}
    modules = [(m, key, p) for m in model.modules() for key, p in m._parameters.items() if p is not None and id(p) in places]
    recurrent = next((places[id(p)][0] for m, _, p in modules if isinstance(m, nn.RNNBase)), None)
    if recurrent is not None:
        raise PlanError(
            f"{recurrent} is read by a recurrent layer of torch, past parametrizations: use recovery.Sparse, which masks at "
            "each step of an optimizer"
        )
    apply_masks_(model, masks)
    shared = {key: Mask(mask.to(parameters[name].device).clone()) for key, (name, mask) in places.items()}
    orders = {id(m): tuple(m._parameters) for m, _, _ in modules}
    for module, key, parameter in modules:
        parametrize.register_parametrization(module, key, shared[id(parameter)])
        module.parametrizations[key].order = orders[id(module)]  # type: ignore[index,union-attr]
    return model


def detach_masks_(model: nn.Module) -> nn.Module:
    """Take masks away from a model in place and leave the zeros in its weights; return the model.

    Args:
        model: with masks from `attach_masks_`; a model without masks stays as it is.

    Raises:
        ArgumentError: an argument of another type.

    Example:
        >>> import torch
        >>> net = attach_masks_(torch.nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> sorted(detach_masks_(net).state_dict()), net.weight[0, 1].item()
        (['bias', 'weight'], 0.0)
    """
    check_arguments(detach_masks_, locals())
    for module, key, _ in list(_masked_places(model)):
        order = module.parametrizations[key].order  # type: ignore[index,union-attr]
        kind = type(module)
        # torch deletes an attribute of the class, which copies of the module share
        module.__class__ = type(kind.__name__, kind.__bases__, {k: v for k, v in vars(kind).items() if k != "__dict__"})
        parametrize.remove_parametrizations(module, key, leave_parametrized=True)
        for name in [n for n in order if n in module._parameters]:  # so that optimizers number them as before
            module._parameters[name] = module._parameters.pop(name)
    return model


def without_masks(model: nn.Module) -> nn.Module:
    """Return the model itself where no masks are attached; else a copy with the zeros and without the masks."""
    if not any(True for _ in _masked_places(model)):
        return model
    return detach_masks_(copied(model, lambda _, tensor, __: tensor.clone())[0])


def attached_masks(model: nn.Module) -> Masks:
    """Return the masks that are attached to a model, by the names that the parameters have without masks.

    Args:
        model: with masks from `attach_masks_`, or without.

    Raises:
        ArgumentError: an argument of another type.

    Example:
        >>> import torch
        >>> net = attach_masks_(torch.nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> attached_masks(net)
        {'weight': tensor([[ True, False]])}
    """
    check_arguments(attached_masks, locals())
    names = {id(module): name for name, module in model.named_modules()}
    masks: Masks = {}
    seen: set[int] = set()
    for module, key, mask in _masked_places(model):
        if id(mask) not in seen:
            seen.add(id(mask))
            masks[f"{names[id(module)]}.{key}".lstrip(".")] = mask.mask.clone()
    return masks


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict that a model has once its masks are detached; tied parameters stay one tensor."""
    state = dict(model.state_dict())
    names = {id(module): name for name, module in model.named_modules()}
    values: dict[int, Tensor] = {}
    for module, key, _ in _masked_places(model):
        prefix = f"{names[id(module)]}." if names[id(module)] else ""
        original = state.pop(f"{prefix}parametrizations.{key}.original")
        del state[f"{prefix}parametrizations.{key}.0.mask"]
        state[f"{prefix}{key}"] = values.setdefault(original.data_ptr(), getattr(module, key).detach())
    return state


def _masked_places(model: nn.Module) -> Iterator[tuple[nn.Module, str, Mask]]:
    """Yield (module, name of the attribute, mask) of all masked parameters."""
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        for key, chain in list(module.parametrizations.items()):  # type: ignore[union-attr,operator]
            if len(chain) == 1 and isinstance(chain[0], Mask):
                yield module, key, chain[0]
