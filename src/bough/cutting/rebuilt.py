"""The module that `rebuild` gives: an exported program around its own tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, fx, nn

from bough.cutting.literals import argument, arguments, set_argument
from bough.cutting.program import graphs
from bough.errors import CheckpointError


class Rebuilt(fx.GraphModule):
    """An exported program as a module that trains: `train` and `eval` switch its dropouts and batch norms."""

    def __init__(self, program: fx.GraphModule, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(program, program.graph, "Rebuilt")
        self.training = program.training
        for node in (n for graph in graphs(self) for n in graph.nodes):
            flag = _flag(node)
            if flag is not None and argument(node, flag) == self.training:
                node.meta["switch"] = (flag, True, False)
            elif argument(node, "dropout_p") and self.training:
                node.meta["switch"] = ("dropout_p", argument(node, "dropout_p"), 0.0)
        _fill(self, program, change)

    def train(self, mode: bool = True) -> Rebuilt:
        """Switches dropout and batch norm; what else the model does in this mode was not exported."""
        if mode != self.training:
            for node in (n for graph in graphs(self) for n in graph.nodes):
                if "switch" in node.meta:
                    name, on, off = node.meta["switch"]
                    set_argument(node, name, on if mode else off)
            for part in self.modules():
                if isinstance(part, fx.GraphModule):
                    part.recompile()
        super().train(mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Rebuilt:
        copied = super().__deepcopy__(memo)
        _fill(copied, self, lambda t: memo[id(t)])
        assert isinstance(copied, Rebuilt)
        return copied

    def __reduce__(self) -> NoReturn:
        raise CheckpointError(
            "a rebuilt module can not be pickled: use bough.save and bough.load (which is given example_inputs), keep its "
            "state_dict, or save the program with torch.export.save(torch.export.export(module, args), path)"
        )


def _flag(node: fx.Node) -> str | None:
    """The argument that says whether the model trains; None where statistics are those of the input in any mode."""
    names = arguments(node)
    own = "running_mean" in names and argument(node, "running_mean") is None
    return None if own else next((n for n in ("train", "training") if n in names), None)


def _fill(target: nn.Module, source: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Holds in `target`, at the same places and in the same order, what `change` makes of each tensor that `source` holds."""
    for prefix, module in list(source.named_modules(remove_duplicate=False)):
        holder = target
        for name in filter(None, prefix.split(".")):
            if name not in holder._modules:
                holder.add_module(name, nn.Module())
            holder = holder._modules[name]  # type: ignore[assignment]
        if holder is module:  # a part of the program, with no tensors of its own
            continue
        for name in (*module._parameters, *module._buffers):  # those of the graph may be there, in the order of their use
            holder._parameters.pop(name, None)
            holder._buffers.pop(name, None)
        for name, parameter in module._parameters.items():
            holder.register_parameter(name, None if parameter is None else change(parameter))  # type: ignore[arg-type]
        transient = module._non_persistent_buffers_set
        for name, buffer in module._buffers.items():
            holder.register_buffer(name, None if buffer is None else change(buffer), persistent=name not in transient)
        for name, value in list(module.__dict__.items()):
            if isinstance(value, Tensor):  # a constant, which a change of the module's dtype does not change
                holder._buffers.pop(name, None)
                holder.__dict__[name] = change(value)
