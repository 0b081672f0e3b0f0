"""Masks of the elements of parameters that stay, and training that keeps all other elements at zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.planning import Plan
from bough.recovery.training import Attachment, check_optimizer, combine_attachments, hook_after_step, hook_before_step

Masks = dict[str, Tensor]
"""{parameter: bool tensor of its shape, True where the element stays}; parameters without a mask stay whole."""


def masks_of(model: nn.Module, plan: Plan) -> Masks:
    """Return the structured masks of a plan: False in all that the plan removes.

    Args:
        model: the dense model.
        plan: made for this model.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: the plan leaves layers out, or was made for a model with other shapes.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = bough.trace(net, torch.randn(1, 4))
        >>> plan = bough.plan(graph, bough.score(graph, "l2"), keep=0.5)
        >>> int(masks_of(net, plan)["2.weight"].sum())
        8
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
            removed = torch.ones(parameter.shape[dim], dtype=torch.bool)
            removed[kept] = False
            mask.index_fill_(dim, removed.nonzero().flatten().to(mask.device), False)
        masks[name] = mask
    return masks


def kept_share(masks: Mapping[str, Tensor]) -> float:
    """Return the share of elements that stay in the masked parameters; 1 if there are no masks.

    Args:
        masks: {parameter: bool tensor}.

    Raises:
        ArgumentError: an argument of another type.

    Example:
        >>> import torch
        >>> kept_share({"weight": torch.tensor([True, False, False, False])})
        0.25
    """
    check_arguments(kept_share, locals())
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values()) if masks else 1.0


@torch.no_grad()
def apply_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Set all masked elements to zero in place; return the model.

    Args:
        model: is changed.
        masks: {parameter: bool tensor of its shape, False where it becomes zero}.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: a mask has another shape than its parameter, or the model has no such parameter; nothing is changed.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1)
        >>> apply_masks_(net, {"weight": torch.tensor([[True, False]])}).weight[0, 1].item()
        0.0
    """
    check_arguments(apply_masks_, locals())
    parameters = check_masks(model, masks)
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)
    return model


class Sparse:
    """Keep masked elements at zero during training: attach to the optimizer, or pass to `finetune(regularizers=)`.

    Gradients of masked elements are set to zero before each step, so that no momentum builds up, and their values after it.

    Args:
        model: its masked elements are set to zero at once.
        masks: {parameter: bool tensor of its shape, False where it is zero}.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: a mask has another shape than its parameter, or the model has no such parameter.

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
        self._model, self._parameters = model, check_masks(model, masks)
        self.masks = dict(masks)
        apply_masks_(model, masks)

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Register the hooks on an optimizer.

        Raises:
            TrainingError: the optimizer has no parameter of the masked model.
        """
        check_optimizer(optimizer, self._model.parameters(), "the masked model")
        return combine_attachments(
            [hook_before_step(optimizer, self._mask_gradients), hook_after_step(optimizer, self._mask_values)]
        )

    def _removed(self, name: str) -> Tensor:
        """Return the inverse of a mask, on the parameter's device, which may have changed."""
        self.masks[name] = self.masks[name].to(self._parameters[name].device)
        return ~self.masks[name]

    @torch.no_grad()
    def _mask_gradients(self) -> None:
        for name in self.masks:
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(self._removed(name), 0.0)

    @torch.no_grad()
    def _mask_values(self, optimizer: Optimizer) -> None:
        for name in self.masks:
            self._parameters[name].masked_fill_(self._removed(name), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the masks."""
        return {"masks": dict(self.masks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore masks that `state_dict` returned."""
        self.masks = dict(state["masks"])


def check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Return the model's parameters by name, after checking that the masks fit."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            actual = list(parameters[name].shape) if name in parameters else "no such parameter"
            raise PlanError(f"a mask of shape {list(mask.shape)} for {name!r}: the model has {actual}")
    return parameters
