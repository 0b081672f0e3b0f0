"""Modules of subnets, whose tensors are slices of the supernet's: gradients flow back to the supernet's parameters."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bough.cutting.copying import copy_modules
from bough.cutting.cut import computed_weights, copied, finish
from bough.planning.plan import Plan, Scale
from bough.tracing.capture.execution import model_tensors

_KEPT = 64  # forms that stay known


@dataclass(frozen=True, eq=False, slots=True)
class _Form:
    """The module of a cut without its values.

    Attributes:
        module: cut as the plan says; each tensor is a placeholder of the right shape.
        placeholders: {name of a tensor of the supernet: placeholder}.
        origins: (module of the form, module of the supernet that it is a copy of).
    """

    module: nn.Module
    placeholders: Mapping[str, Tensor]
    origins: Sequence[tuple[nn.Module, nn.Module]]


class Instances:
    """Makes modules of subnets from one model.

    Args:
        model: the supernet's; its parameters are what subnets slice.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._forms: OrderedDict[Hashable, _Form] = OrderedDict()

    def make(self, key: Hashable, plan: Plan) -> nn.Module:
        """Return a module that computes what `cut(model, plan)` would, on slices of the model's present parameters.

        Its parameters are tensors with a history, or leaves without one where gradients are off. Its buffers are copies, so
        statistics that the module updates are its own.

        Args:
            key: of the plan, by which its form is found again.
            plan: of the model.
        """
        form = self._form(key, plan)
        slices = _Slices(plan)
        named = {name: (tensor, parameter) for name, tensor, parameter, _ in model_tensors(self.model)}
        memo: dict[int, Any] = computed_weights(form.module)
        for name, placeholder in form.placeholders.items():
            tensor, parameter = named[name]
            memo[id(placeholder)] = slices(name, tensor) if parameter else slices(name, tensor.detach()).clone()
        copy_modules(form.module, memo)
        module: nn.Module = copy.deepcopy(form.module, memo)
        for cut, original in form.origins:
            if id(cut) in memo:
                memo[id(cut)].training = original.training
        return module

    def _form(self, key: Hashable, plan: Plan) -> _Form:
        if key not in self._forms:
            self._forms[key] = self._cut(plan)
            if len(self._forms) > _KEPT:
                self._forms.popitem(last=False)
        self._forms.move_to_end(key)
        return self._forms[key]

    def _cut(self, plan: Plan) -> _Form:
        def placeholder(name: str, tensor: Tensor, parameter: bool) -> Tensor:
            kept = plan.kept.get(name, {})
            shape = [len(kept[d]) if d in kept else n for d, n in enumerate(tensor.shape)]
            return tensor.new_zeros(()).expand(shape)

        module, copies = copied(self.model, placeholder)
        origins = [*zip(module.modules(), self.model.modules(), strict=True)]
        finish(module, plan)
        return _Form(module, {n: copies[id(t)] for n, t, _, _ in model_tensors(self.model)}, origins)


class _Slices:
    """Slices tensors as a plan says, by operators that pass gradients."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._scales: dict[str, list[Scale]] = {}
        for scale in plan.scales:
            self._scales.setdefault(scale.name, []).append(scale)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the kept part of a tensor: a view where the indices kept are the first ones, otherwise a copy."""
        for scale in self._scales.get(name, ()):
            factors = torch.ones(tensor.shape[scale.dim], dtype=tensor.dtype)
            factors[list(scale.indices)] = scale.factor
            tensor = tensor * factors.to(tensor.device).view([-1 if d == scale.dim else 1 for d in range(tensor.dim())])
        for dim, kept in self.plan.kept.get(name, {}).items():
            if kept[-1] == len(kept) - 1:
                tensor = tensor.narrow(dim, 0, len(kept))
            else:
                tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
        return tensor
