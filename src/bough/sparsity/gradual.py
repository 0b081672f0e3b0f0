"""Gradual pruning: single weights go to zero while training continues, by magnitude or by movement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.errors import PlanError
from bough.graph import Graph
from bough.recovery.regularize import Masks, Sparse
from bough.recovery.schedule import Schedule, cubic
from bough.recovery.training import Attachment, check_optimizer, combine_attachments, hook_after_step, hook_before_step
from bough.sparsity.densities import allocation_named
from bough.sparsity.selected import selected_weights
from bough.sparsity.selection import keep_highest
from bough.sparsity.weight_matrices import masks_from
from bough.tracing.selection import Selection, as_names

_METHODS = ("magnitude", "movement")


class GradualPruning:
    """Raise the share of zeros step by step during training: attach to an optimizer, or pass to `finetune(regularizers=)`.

    After each `steps / updates` optimizer steps, the elements with the lowest scores are masked until the share of that update
    is reached. Masked elements are kept at zero as by `recovery.Sparse`; `masks` are the masks of the moment.

    "magnitude" scores |w|. "movement" scores -sum over steps of w dL/dw, which is high where weights move away from zero; a
    masked element keeps its value aside and collects scores from the gradient at zero, so it may come back.

    Source: Zhu and Gupta, 2017 (cubic schedule, magnitude); Sanh et al., 2020 (movement, hard form).

    Args:
        graph: of the model that is trained.
        sparsity: share of zeros at the end, at least 0 and below 1, of the weights that are made sparse.
        steps: optimizer steps until the end is reached.
        updates: number of times that the masks are chosen again.
        method: "magnitude" or "movement".
        allocation: "uniform", "global" or "erk", as for `sparsify`.
        schedule: gives the shares kept.
        ignore, only: as for `sparsify`.

    Raises:
        ArgumentError: an argument of another type.
        PlanError: an option out of range, or nothing can be made sparse.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> gradual = GradualPruning(bough.trace(net, torch.randn(1, 8)), 0.75, steps=4, updates=2)
        >>> sgd = torch.optim.SGD(net.parameters(), 0.1)
        >>> attached = gradual.attach(sgd)
        >>> for _ in range(4):
        ...     sgd.zero_grad()
        ...     net(torch.randn(3, 8)).square().sum().backward()
        ...     sgd.step()
        >>> gradual.settled, int(sum(net[i].weight.count_nonzero() for i in (0, 2)))
        (True, 40)
    """

    def __init__(
        self, graph: Graph, sparsity: float, *, steps: int, updates: int = 10, method: str = "magnitude",
        allocation: str = "global", schedule: Schedule = cubic, ignore: Selection = (), only: Selection | None = None,
    ) -> None:  # fmt: skip
        check_arguments(GradualPruning.__init__, locals())
        if not 0 <= sparsity < 1:
            raise PlanError(f"sparsity={sparsity}: the share of zeros must be at least 0 and below 1")
        if not 0 < updates <= steps:
            raise PlanError(f"steps={steps}, updates={updates}: give at least one update, and at least one step for each")
        if method not in _METHODS:
            raise PlanError(f"method={method!r} is unknown: use one of {', '.join(map(repr, _METHODS))}")
        self.graph, self.steps, self.method, self._allocate = graph, steps, method, allocation_named(allocation)
        names = as_names(graph.model, ignore, "ignore"), None if only is None else as_names(graph.model, only, "only")
        self.matrices, self.left_out = selected_weights(graph, *names, None)
        self.shares = schedule(1 - sparsity, updates)
        self.step = 0
        parameters = {m.name: graph.tensor(m.name) for m in self.matrices}
        self._sparse = Sparse(graph.model, {n: torch.ones_like(p, dtype=torch.bool) for n, p in parameters.items()})
        self._aside = {n: torch.zeros_like(p).detach() for n, p in parameters.items()} if method == "movement" else {}
        self._movement = {n: torch.zeros_like(p).detach() for n, p in self._aside.items()}

    @property
    def masks(self) -> Masks:
        """The masks of the moment."""
        return self._sparse.masks

    @property
    def settled(self) -> bool:
        """True if the share of zeros is that of the end."""
        return self.step >= self.steps

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Register the hooks on an optimizer.

        Raises:
            TrainingError: the optimizer has no parameter of the graph's model.
        """
        check_optimizer(optimizer, self.graph.model.parameters(), "the graph's model")
        before = hook_before_step(optimizer, self._add_movement)  # before the masks take gradients away
        return combine_attachments([before, self._sparse.attach(optimizer), hook_after_step(optimizer, self._advance)])

    @torch.no_grad()
    def _add_movement(self) -> None:
        for name in self._movement:
            gradient = self.graph.tensor(name).grad
            if gradient is not None:
                self._movement[name] = self._movement[name].to(gradient) - gradient * self._value(name)

    def _value(self, name: str) -> Tensor:
        """Return the weight, with the values set aside where it is masked."""
        weight = self.graph.tensor(name).detach()
        return torch.where(self.masks[name].to(weight.device), weight, self._aside[name].to(weight))

    @torch.no_grad()
    def _advance(self, optimizer: Optimizer) -> None:
        """Count the step; choose masks again where one of the updates is due."""
        self.step += 1
        due = [i for i in range(len(self.shares)) if self.steps * (i + 1) // len(self.shares) == self.step]
        if not due:
            return
        scores = [m.gather(self._scores(m.name)) for m in self.matrices]
        total = round(self.shares[due[-1]] * sum(m.size for m in self.matrices))
        counts = self._allocate(self.matrices, total, scores)
        kept = [keep_highest(s, c) for s, c in zip(scores, counts, strict=True)]
        masks = masks_from(self.graph, list(zip(self.matrices, kept, strict=True)))
        for name, mask in masks.items():
            weight = self.graph.tensor(name)
            if name in self._aside:
                self._aside[name] = self._value(name).clone()
                weight.copy_(self._aside[name])
            weight.masked_fill_(~mask, 0.0)
        self._sparse.masks = masks

    def _scores(self, name: str) -> Tensor:
        if self.method == "movement":
            return self._movement[name]
        return self.graph.tensor(name).detach().abs()

    def state_dict(self) -> dict[str, Any]:
        """Return step, masks, and for "movement" scores and values set aside."""
        return {"step": self.step, **self._sparse.state_dict(), "movement": dict(self._movement), "aside": dict(self._aside)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.step = int(state["step"])
        self._sparse.load_state_dict(state)
        self._movement, self._aside = dict(state["movement"]), dict(state["aside"])
