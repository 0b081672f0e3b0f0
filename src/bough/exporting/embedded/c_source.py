"""The generated files: model.h, model.c and the recorded test vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bough.exporting.embedded.arena import Arena
from bough.exporting.embedded.c_calls import Writer, statement
from bough.exporting.embedded.c_constants import numbers
from bough.exporting.embedded.program import Int8, Port, Program
from bough.exporting.embedded.scratch import place_scratch

_SCRATCH = """/* Working memory of one kernel: offset and size in the arena without and with the vector extension. */
#if !defined(MODEL_CMSIS_NN)
#define SCRATCH(offset, size, vector_offset, vector_size) {0, 0}
#elif defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#define SCRATCH(offset, size, vector_offset, vector_size) {arena.bytes + (vector_offset), vector_size}
#else
#define SCRATCH(offset, size, vector_offset, vector_size) {arena.bytes + (offset), size}
#endif
"""
_KERNEL_SUMS = """/* With the vector extension, linear layers take the sums of their weights from the working memory. */
#if defined(MODEL_CMSIS_NN) && defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#include "arm_nnsupportfunctions.h"
#define KERNEL_SUMS(depth, outputs, weight, offset, bias) \\
    status |= arm_vector_sum_s8((int32_t *)context.buf, depth, outputs, weight, offset, 0, bias)
#else
#define KERNEL_SUMS(depth, outputs, weight, offset, bias)
#endif
"""


def header(program: Program, arena: Arena) -> str:
    """Return model.h: sizes, scales, zero points and the layout of inputs and outputs."""
    lines = ["/* Made by bough. */", "#ifndef MODEL_H", "#define MODEL_H", "", "#include <stdint.h>", ""]
    plain, vector = (place_scratch(program, arena, vector=v).arena for v in (False, True))
    lines += [
        "/* Bytes of static memory; the optimized kernels need working memory besides the activations. */",
        "#if !defined(MODEL_CMSIS_NN)", f"#define MODEL_ARENA_BYTES {arena.size}",
        "#elif defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)", f"#define MODEL_ARENA_BYTES {vector}",
        "#else", f"#define MODEL_ARENA_BYTES {plain}", "#endif", "",
    ]  # fmt: skip
    for kind, ports in (("INPUT", program.inputs), ("OUTPUT", program.outputs)):
        lines += [f"#define MODEL_{kind}S {len(ports)}", f"#define MODEL_{kind}_BYTES {sum(q.tensor.size for q in ports)}"]
        for i, port in enumerate(ports):
            prefix = f"MODEL_{kind}" if len(ports) == 1 else f"MODEL_{kind}{i}"
            quantization = port.tensor.quantization
            lines += [
                f"/* {port.name}: {described(port)} */",
                f"#define {prefix}_SIZE {port.tensor.size}",
                f"#define {prefix}_SCALE {quantization.scale!r}f",
                f"#define {prefix}_ZERO_POINT ({quantization.zero_point})",
            ]
        lines.append("")
    single = len(program.inputs) == len(program.outputs) == 1
    lines += [
        "/* Run the model; real value = scale * (stored value - zero point). Returns 0, or the status of a kernel that failed.",
        " * The arena is static: one run at a time. */",
        f"{signature(single)};", "", "#endif", "",
    ]  # fmt: skip
    return "\n".join(lines)


def signature(single: bool) -> str:
    """Return the C signature of `model_run`."""
    if single:
        return "int model_run(const int8_t *input, int8_t *output)"
    return "int model_run(const int8_t *const *inputs, int8_t *const *outputs)"


def described(port: Port) -> str:
    """Return the shape of a port in memory, with the letters of the layout where it is not that of PyTorch."""
    sizes = " x ".join(str(port.shape[d]) for d in port.order)
    if list(port.order) == sorted(port.order):
        return f"{sizes}, as in PyTorch"
    return f"{sizes}: dimensions {', '.join(map(str, port.order))} of PyTorch's {' x '.join(map(str, port.shape))}"


def source(program: Program, arena: Arena) -> tuple[str, Writer]:
    """Return model.c, and the writer that knows which kernels and constants it uses."""
    writer = Writer(program, arena)
    statements = []
    for i, op in enumerate(program.ops):
        statements.append(f"    /* {op.source} */\n    {statement(writer, op, i)}")
    body = "\n".join(statements)
    single = len(program.inputs) == len(program.outputs) == 1
    if single:
        for kind in ("input", "output"):
            body = body.replace(f"{kind}s[0]", kind)
    lines = [
        "/* Made by bough. */", '#include "model.h"', "", "#include <string.h>", "",
        '#include "arm_nnfunctions.h"', '#include "bough_kernels.h"', "",
    ]  # fmt: skip
    memory = ["static union {", "    int8_t bytes[MODEL_ARENA_BYTES];", "    int64_t aligned;", "} arena;", ""]
    if arena.size:
        lines += memory
    elif "SCRATCH(" in body:
        lines += ["#if defined(MODEL_CMSIS_NN)", *memory[:-1], "#endif", ""]
    lines += [text for mark, text in (("SCRATCH(", _SCRATCH), ("KERNEL_SUMS(", _KERNEL_SUMS)) if mark in body]
    lines += [writer.constants.text(), *writer.structs, "", signature(single), "{"]
    if "status |=" in body:
        lines += ["    int status = 0;"]
    if "&no_scratch" in body:
        lines += ["    const cmsis_nn_context no_scratch = {0, 0};"]
    lines += [body, f"    return {'status' if 'status |=' in body else '0'};", "}", ""]
    return "\n".join(lines), writer


def vectors(program: Program, inputs: Sequence[Sequence[Int8]], outputs: Sequence[Sequence[Int8]]) -> tuple[str, str]:
    """Return vectors.h and vectors.c: recorded inputs with the outputs of the reference, one run after the other."""
    head = "\n".join(
        [
            "/* Made by bough: inputs, and the outputs of the integer reference for them. */", "#ifndef VECTORS_H",
            "#define VECTORS_H", "", "#include <stdint.h>", "", "#ifndef VECTORS", f"#define VECTORS {len(inputs)}", "#endif",
            "extern const int8_t vector_inputs[];", "extern const int8_t vector_outputs[];",
            "int vector_run(const int8_t *input, int8_t *output);", "", "#endif", "",
        ]
    )  # fmt: skip
    arrays = []
    for name, runs in (("inputs", inputs), ("outputs", outputs)):
        flat = np.concatenate([np.asarray(a).reshape(-1) for run in runs for a in run]) if runs else np.zeros(1, np.int8)
        arrays.append(f"const int8_t vector_{name}[] = {{\n{numbers(flat)}\n}};\n")
    body = _run_vector(program)
    return head, "\n".join(['/* Made by bough. */\n#include "vectors.h"\n\n#include "model.h"\n', *arrays, body])


def _run_vector(program: Program) -> str:
    head = "int vector_run(const int8_t *input, int8_t *output)\n{\n"
    if len(program.inputs) == len(program.outputs) == 1:
        return f"{head}    return model_run(input, output);\n}}\n"
    lines = []
    for kind, ports, qualifier in (
        ("input", program.inputs, "const int8_t *const"),
        ("output", program.outputs, "int8_t *const"),
    ):
        starts = np.cumsum([0, *(q.tensor.size for q in ports)])[:-1]
        lines.append(f"    {qualifier} {kind}s[] = {{{', '.join(f'{kind} + {s}' for s in starts)}}};\n")
    return f"{head}{''.join(lines)}    return model_run(inputs, outputs);\n}}\n"
