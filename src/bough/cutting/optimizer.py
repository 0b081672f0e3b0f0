"""`transfer_optimizer`: training state carried through a cut.

A plan may fold a factor c into a weight: w' = c w. The gradient is then g' = g / c, and what an optimizer remembers goes
with it: averages of gradients as 1/c, of squared gradients as 1/c^2, of weights as c. `_POWERS` says which is which by the
names that torch's optimizers use. Learning rates and steps without a unit (Adam's) stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.cutting.parameter_history import ParameterHistory, histories
from bough.cutting.slicing import Slicer, formatted, plainly
from bough.errors import PlanError
from bough.planning.plan import Plan
from bough.torch_internals import is_traceable_wrapper_subclass
from bough.tracing.capture.stream import tensors_in

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

_POWERS = {  # state: the power of a weight's factor that it is multiplied by
    "momentum_buffer": -1, "exp_avg": -1, "grad_avg": -1, "prev": -1, "exp_inf": -1,
    "exp_avg_sq": -2, "max_exp_avg_sq": -2, "square_avg": -2, "sum": -2, "variance": -2,
    "ax": 1, "step_size": 1, "acc_delta": 2,
}  # fmt: skip
_FACTORED = (("row_var", "col_var"), ("exp_avg_sq_row", "exp_avg_sq_col"))  # second moments kept as means over rows and columns
_REFUSED = {
    "LBFGS": "keeps one flat history of all parameters, in which units can not be distinguished",
    "ZeroRedundancyOptimizer": "keeps its state in parts on several processes",
}


def transfer_optimizer(optimizer: AnyOptimizer, plan: Plan) -> AnyOptimizer:
    """Make an optimizer go on with the cut model, its state sliced as the parameters were; returns the same optimizer.

    To be called after `small = cut(model, plan)` or `cut_(model, plan)`. The optimizer, changed in place, then holds the cut
    parameters, in the same groups and order and with the same hyperparameters; those of layers left out are dropped, and
    parameters that are not the model's stay. Learning rate schedulers, gradient scalers and wrappers that hold the optimizer
    go on. State of a parameter's shape is sliced; numbers are kept; factored second moments (Adafactor's) are those of the
    kept part, V = R C / mean(R), so their means over what was removed are taken out. (Adafactor and Muon also make a step's
    length depend on the weight's shape, and from now on on the new one.)

    Args:
        optimizer: of the uncut model's parameters: one of torch.optim, or one that keeps its state as these do.
        plan: that the model was cut by.

    Raises:
        PlanError: the optimizer holds no parameter that was cut by this plan, or state that can not be sliced; nothing is
            changed.

    Example:
        >>> import torch, bough
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> adam = torch.optim.Adam(net.parameters())
        >>> x = torch.randn(3, 4)
        >>> net(x).sum().backward()
        >>> adam.step()
        >>> graph = bough.trace(net, x)
        >>> plan = bough.plan(graph, bough.score(graph, bough.importance.Magnitude()), keep=0.5)
        >>> small = bough.cut(net, plan)
        >>> adam = bough.transfer_optimizer(adam, plan)
        >>> adam.state[small[0].weight]["exp_avg"].shape
        torch.Size([4, 4])
    """
    check_arguments(transfer_optimizer, locals())
    parts = _parts(optimizer)
    for kind in (c.__name__ for part in parts for c in type(part).__mro__):
        if kind in _REFUSED:
            raise PlanError(f"{kind} {_REFUSED[kind]}: make a new optimizer for the cut model. Nothing was changed")
    groups = list({id(g): g for part in parts for g in part.param_groups}.values())
    moves = _moves(groups, plan)
    with plainly():
        states = [(part.state, _after(part, moves, plan)) for part in {id(p.state): p for p in parts}.values()]
    for group in groups:
        for key, values in _moved(group, moves).items():
            group[key][:] = values
    for state, after in states:
        state.clear()
        state.update(after)
    return optimizer


def _parts(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer and those it wraps, innermost first: accelerate's and lookahead's have others inside."""
    parts: list[Optimizer] = []
    waiting = [optimizer]
    while waiting:
        part = waiting.pop()
        if not any(part is p for p in parts):
            parts.insert(0, part)
            waiting += [v for v in vars(part).values() if isinstance(v, Optimizer)]
    return parts


def _after(optimizer: Optimizer, moves: Mapping[int, ParameterHistory], plan: Plan) -> dict[Any, Any]:
    """An optimizer's whole state after the cut."""
    carry = _Carrier(type(optimizer).__name__, plan)
    after: dict[Any, Any] = {}
    for parameter, state in optimizer.state.items():
        way = moves.get(id(parameter))
        if way is None:
            after[parameter] = state
        elif (target := way.target()) is not None:
            after[target] = carry(parameter, state, way)
    return after


def _moves(groups: Iterable[Mapping[str, Any]], plan: Plan) -> dict[int, ParameterHistory]:
    """The way through the cut of each of the groups' parameters that was in the model, by its id."""
    same: dict[int, bool] = {}  # plans compare slowly, and all parameters have the same few

    def by_plan(way: ParameterHistory) -> bool:
        if id(way.plan) not in same:
            same[id(way.plan)] = way.plan is plan or way.plan == plan
        return same[id(way.plan)]

    moves: dict[int, ParameterHistory] = {}
    gone = False
    for parameter in (p for group in groups for p in group["params"]):
        found = [way for way in histories(parameter) if by_plan(way)]
        alive = [way for way in found if way.alive()]
        gone = gone or (bool(found) and not alive)
        if alive:
            moves[id(parameter)] = alive[-1]
    if gone:
        raise PlanError("the model that was cut by this plan is gone: keep what bough.cut returns. Nothing was changed")
    if not moves:
        raise PlanError(
            "the optimizer holds no parameter that was cut by this plan: call transfer_optimizer once, after "
            "bough.cut(model, plan) or bough.cut_(model, plan) and with the optimizer of that same model. Nothing was changed"
        )
    return moves


def _moved(group: Mapping[str, Any], moves: Mapping[int, ParameterHistory]) -> dict[str, list[Any]]:
    """What the lists of a parameter group become."""
    ways = [moves.get(id(p)) for p in group["params"]]
    stay = [i for i, way in enumerate(ways) if way is None or way.after]
    parameters = [p if way is None else way.target() for p, way in zip(group["params"], ways, strict=True)]
    moved = {"params": [parameters[i] for i in stay]}
    if "param_names" in group:
        moved["param_names"] = [_renamed(group["param_names"][i], ways[i]) for i in stay]
    return moved


def _renamed(name: str, way: ParameterHistory | None) -> str:
    """A parameter's name after the cut; layers behind one that was left out have moved up."""
    return name if way is None or not name.endswith(way.before) else name.removesuffix(way.before) + way.after


class _Carrier:
    """Makes a parameter's state after the cut out of its state before."""

    def __init__(self, optimizer: str, plan: Plan) -> None:
        self.optimizer, self.plan = optimizer, plan
        self.slicer = Slicer(plan)
        self.scaled = {s.name for s in plan.scales}

    def __call__(self, parameter: Tensor, state: Any, way: ParameterHistory) -> Any:
        name = way.before
        if not (name in self.plan.kept or name in self.scaled):
            return state
        shape = tuple(self.plan.original_shapes.get(name, parameter.shape))
        if not isinstance(state, Mapping):
            raise self._stranger(name, "", state, shape)
        factored: dict[str, Tensor] = {}
        for keys in _FACTORED:
            if all(isinstance(state.get(k), Tensor) for k in keys):
                factored.update(zip(keys, self._factored(name, state, keys, shape), strict=True))
        return {k: factored[k] if k in factored else self._carried(name, k, state, shape) for k in state}

    def _carried(self, name: str, key: str, state: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        value = state[key]
        if not isinstance(value, Tensor):
            if isinstance(value, Mapping) or tensors_in(value):
                raise self._stranger(name, key, value, shape)
            return value
        if tuple(value.shape) != shape:
            if value.numel() == 1:
                return value
            raise self._stranger(name, key, value, shape)
        if is_traceable_wrapper_subclass(value) or value.layout != torch.strided:
            raise self._stranger(name, key, value, shape)
        power = 0
        if name in self.scaled:
            if key not in _POWERS:
                raise PlanError(
                    f"{self.optimizer}'s state {key!r} of {name}: the plan folds a factor into {name}, and it is not known how "
                    f"{key!r} goes with it. Delete it with del optimizer.state[parameter][{key!r}], or make a new optimizer. "
                    "Nothing was changed"
                )
            # RMSprop's momentum is of gradients over their own size
            power = 0 if key == "momentum_buffer" and "square_avg" in state else _POWERS[key]
        return formatted(value, self.slicer(name, value, fresh=False, power=power))

    def _factored(
        self, name: str, state: Mapping[str, Any], keys: tuple[str, str], shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Means of squared gradients over the last dim and over the one before, as means over what is kept of these."""
        last = len(shape) - 1
        means = []
        for key, dim in zip(keys, (last, last - 1), strict=True):
            mean = state[key]
            mean = mean.unsqueeze(dim) if mean.ndim == last else mean
            if tuple(mean.shape) != tuple(1 if d == dim else n for d, n in enumerate(shape)):
                raise self._stranger(name, key, state[key], shape)
            means.append(self.slicer(name, mean, fresh=False, power=-2, only=range(last - 1)))
        rows, columns = means
        kept_rows = self.slicer(name, rows, fresh=False, power=-2, only=(last - 1,))
        kept_columns = self.slicer(name, columns, fresh=False, power=-2, only=(last,))
        new_rows = kept_rows * _ratio(kept_columns.mean(last, keepdim=True), columns.mean(last, keepdim=True))
        new_columns = kept_columns * _ratio(kept_rows.mean(last - 1, keepdim=True), rows.mean(last - 1, keepdim=True))
        flat_rows, flat_columns = (state[k].ndim == last for k in keys)
        return new_rows.squeeze(last) if flat_rows else new_rows, new_columns.squeeze(last - 1) if flat_columns else new_columns

    def _stranger(self, name: str, key: str, value: Any, shape: tuple[int, ...]) -> PlanError:
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"the type {type(value).__name__}"
        if isinstance(value, Tensor) and type(value) is not Tensor:
            what = f"{what} and the type {type(value).__name__}"
        return PlanError(
            f"{self.optimizer}'s state {key!r} of {name} has {what}, and {name} had shape {list(shape)} before the cut: it can "
            "not be sliced (or was transferred already). Delete it from optimizer.state, or make a new optimizer. Nothing was "
            "changed"
        )


def _ratio(after: Tensor, before: Tensor) -> Tensor:
    return torch.where(before == 0, torch.ones_like(after), after / before)
