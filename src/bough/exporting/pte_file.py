"""ExecuTorch files, lowered to XNNPACK."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from bough.errors import ExportError
from bough.exporting.conversion import conversion
from bough.exporting.flat import FlatModel


def require_executorch() -> None:
    """Raise an ExportError unless ExecuTorch is there."""
    try:
        import executorch.exir  # noqa: F401
    except ImportError as error:
        raise ExportError(f"export to .pte needs {error.name}: pip install bough[executorch]") from None


def write_pte(program: ExportedProgram, flat: FlatModel, path: Path) -> tuple[str, ...]:
    """Write a program as an ExecuTorch file; operators that XNNPACK does not know run in ExecuTorch's portable kernels.

    Returns:
        A note with the operators that were not lowered to XNNPACK; none if all were.

    Raises:
        ExportError: ExecuTorch has no kernel of an operator of the model, or fails.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    with conversion(flat, "a .pte file"):
        edge = to_edge_transform_and_lower(
            _constants_folded(program),
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        left = _left(edge.exported_program())
        path.write_bytes(edge.to_executorch().buffer)
    return (f"in portable kernels, which are slow: {', '.join(f'{n} ({count})' for n, count in left.items())}",) if left else ()


def _constants_folded(program: ExportedProgram) -> ExportedProgram:
    """Return the program with the results of operators on constants alone as constants, such as resized position embeddings.

    ExecuTorch may have no kernel of such an operator. Weights in INT8 stay in INT8. Constants that the program changes in place
    are no constants, so it is brought to a form without such changes first.
    """
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    kept = {n.target for n in program.graph.nodes if "quantize" in str(n.target)} | {torch.ops.aten.full.default}
    folded: ExportedProgram = constant_prop_pass(program.run_decompositions({}), custom_skip_targets=kept)
    _own_memory(folded)
    return folded


def _own_memory(program: ExportedProgram) -> None:
    """Give each folded constant memory of its own in plain order, in place.

    XNNPACK writes the memory that a view begins in from its start, and portable kernels refuse operands of several layouts.
    """
    lifted = program.graph_signature.inputs_to_lifted_tensor_constants
    for node in program.graph.nodes:
        constant = program.constants.get(lifted.get(node.name, ""))
        if isinstance(constant, torch.Tensor):
            program.constants[lifted[node.name]] = constant.detach().clone(memory_format=torch.contiguous_format)
            node.meta["val"] = node.meta["val"].contiguous()


def _left(program: ExportedProgram) -> dict[str, int]:
    """Return the operators outside of XNNPACK and how often each occurs, the most frequent first."""
    found: dict[str, int] = {}
    for node in program.graph.nodes:
        name = str(getattr(node.target, "__name__", node.target))
        if node.op == "call_function" and "getitem" not in name and "executorch_call_delegate" not in name:
            found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
