"""Masks: which elements of parameters stay, and training that keeps the others at zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.planning import Plan
from bough.recovery.attach import Attachment, after_each_step, before_each_step, check_holds, together

Masks = dict[str, Tensor]
"""{parameter: bool tensor of its shape, true where it stays}; parameters that are not named stay whole."""


def masks_of(model: nn.Module, plan: Plan) -> Masks:
    """The structured masks of a plan: false in all that it removes.

    Raises:
        PlanError: the plan leaves layers out, or is of a model with other shapes.
    """
    check_arguments(masks_of, locals())
    if plan.left_out:
        raise PlanError(f"a plan that leaves out a layer ({next(iter(plan.left_out))}) has no masks")
    masks = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in plan.kept:
            continue
        if list(parameter.shape) != plan.original_shapes[name]:
            raise PlanError(f"{name} has shape {list(parameter.shape)}, the plan is for {plan.original_shapes[name]}")
        mask = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
        for dim, kept in plan.kept[name].items():
            gone = torch.ones(parameter.shape[dim], dtype=torch.bool)
            gone[kept] = False
            mask.index_fill_(dim, gone.nonzero().flatten().to(mask.device), False)
        masks[name] = mask
    return masks


def kept_share(masks: Mapping[str, Tensor]) -> float:
    """The share of the masked parameters' elements that stays; 1 where nothing is masked."""
    check_arguments(kept_share, locals())
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values()) if masks else 1.0


@torch.no_grad()
def apply_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Sets what the masks take away to zero; returns the model.

    Raises:
        PlanError: a mask for a parameter that the model does not have, or of another shape; nothing is changed.
    """
    check_arguments(apply_masks_, locals())
    parameters = _masked(model, masks)
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)
    return model


class Sparse:
    """Keeps masked elements at zero while training: attach it to the optimizer, or give it to `finetune(regularizers=)`.

    Their gradients are set to zero before each step, so no momentum builds up, and their values after it.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        >>> attached = Sparse(net, {"weight": torch.tensor([[True, False]])}).attach(sgd)
        >>> net(torch.ones(1, 2)).sum().backward()
        >>> sgd.step()
        >>> net.weight[0, 1].item()
        0.0
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        check_arguments(Sparse.__init__, locals())
        self._model, self._parameters = model, _masked(model, masks)
        self.masks = dict(masks)
        apply_masks_(model, masks)

    def attach(self, optimizer: Optimizer) -> Attachment:
        check_holds(optimizer, self._model.parameters(), "the masked model")
        return together([before_each_step(optimizer, self._gradients), after_each_step(optimizer, self._values)])

    def _gone(self, name: str) -> Tensor:
        """What is to be zero, where the parameter is: it may have been moved."""
        self.masks[name] = self.masks[name].to(self._parameters[name].device)
        return ~self.masks[name]

    @torch.no_grad()
    def _gradients(self) -> None:
        for name in self.masks:
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(self._gone(name), 0.0)

    @torch.no_grad()
    def _values(self, optimizer: Optimizer) -> None:
        for name in self.masks:
            self._parameters[name].masked_fill_(self._gone(name), 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"masks": dict(self.masks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks = dict(state["masks"])


def _masked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            there = list(parameters[name].shape) if name in parameters else "no such parameter"
            raise PlanError(f"a mask of shape {list(mask.shape)} for {name!r}: the model has {there}")
    return parameters
