"""An exported program: how it is made of a model, and how it is run node by node under a handler of bough's stream."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from bough.errors import ExportError
from bough.torch_internals import HigherOrderOperator, tree_flatten_spec
from bough.tracing.capture.execution import Execution
from bough.tracing.capture.randomness import unchanged_rng
from bough.tracing.capture.stream import Handler, Stream
from bough.tracing.capture.wrapped import eagerly

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Seen = Callable[[fx.Node, Any], None]  # a node and what it gave

_TORCH = str(Path(torch.__file__).parent)
_NESTING = (torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast)


def exported_program(
    model: nn.Module, inputs: Inputs, dynamic_shapes: Any = None, advice: str = "Change what torch.export names"
) -> ExportedProgram:
    """Return the program that `torch.export` makes of a model; the random number generators stay as they are.

    Raises:
        ExportError: torch.export can not make one; the message gives the first line of its reason, and `advice`.
    """
    try:
        with unchanged_rng(), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The tensor attributes? .* assigned during export"
            )  # of recurrent layers' weights
            return torch.export.export(model, *inputs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ExportError(
            f"torch.export can not make a program of {type(model).__name__} on these example_inputs: {type(error).__name__}: "
            f"{first}. {advice}"
        ) from error


def exported(model: nn.Module, inputs: Inputs, dynamic_shapes: Any) -> fx.GraphModule:
    """The model as one graph of ATen ops, in the mode it is in; it holds the model's own tensors, by the same names.

    Raises:
        ExportError: torch.export can not do it; the message gives the first line of its reason.
    """
    advice = "Plan with on_conflict='freeze' and use bough.cut, or change what torch.export names"
    program = exported_program(model, inputs, dynamic_shapes, advice).module()
    program.training = model.training
    for graph in graphs(program):
        for node in list(graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:  # only that dtypes are those of the export
                graph.erase_node(node)
    return program


def graphs(program: nn.Module) -> list[fx.Graph]:
    """The graph of a program, and those of the parts it runs without gradients or under autocast."""
    return [m.graph for m in program.modules() if isinstance(m, fx.GraphModule)]


class NodeError(Exception):
    """A node that can not be run."""

    def __init__(self, node: fx.Node, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        self.node = node


class _Steps(fx.Interpreter):
    def __init__(self, program: fx.GraphModule, handler: Handler, seen: Seen) -> None:
        super().__init__(program)
        self.extra_traceback = False
        self.handler, self.seen = handler, seen

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except NodeError:
            raise
        except Exception as error:
            raise NodeError(n, error) from error
        self.seen(n, result)
        return result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return None  # the guards on the inputs

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self.handler.owned(value) if isinstance(value, Tensor) else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _NESTING:
            at = next(i for i, a in enumerate(args) if isinstance(a, fx.GraphModule))
            return _Steps(args[at], self.handler, self.seen).run(*args[at + 1 :])
        if isinstance(target, HigherOrderOperator):
            raise ExportError(f"the program holds {target.name()}, whose parts bough can not follow")
        return super().call_function(target, args, kwargs)


def walk(program: fx.GraphModule, handler: Handler, execution: Execution, inputs: Inputs, seen: Seen) -> None:
    """Runs a program under `handler`, its tensors replaced by stand-ins; `seen` is called with each node and its result."""
    leaves = tree_flatten_spec(inputs, program._in_spec)
    stand_ins = [execution.stand_in(v) if isinstance(v, Tensor) else v for v in leaves]
    stream = Stream(handler)
    steps = _Steps(program, handler, lambda node, result: stream.quietly(seen, node, result))
    with unchanged_rng(), torch.no_grad(), stream, eagerly():
        steps.run(*stand_ins, enable_io_processing=False)


def data_sized(node: fx.Node, i: int) -> set[int]:
    """The dims of the tensor number `i` that a node gives whose size depends on values."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols  # slow to import

    value = node.meta.get("val")
    tensors = [v for v in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(v, Tensor)]
    return {d for d, n in enumerate(tensors[i].shape) if free_unbacked_symbols(n)} if i < len(tensors) else set()


def place(node: fx.Node) -> str:
    """A node for messages: the op, its module and its line in the model's Python."""
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    module = (modules[-1] if modules else "").removeprefix("L['self']").lstrip(".")
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [f"{file}:{line}" for file, line in lines if not file.startswith(_TORCH)]
    return f"{node.name} ({node.target}) in {module or 'the model'}" + (f", {own[-1]}" if own else "")
