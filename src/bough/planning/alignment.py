"""Which multiples widths should have for which hardware."""

from __future__ import annotations

from bough.errors import PlanError

# CPUs: numbers of one vector register (float32), in which kernels block channels. NVIDIA tensor cores are at their best
# where matrix dims are multiples of 16 bytes, on A100 and later of 128 bytes (NVIDIA, Matrix Multiplication Background).
# Cortex-M cores with the DSP extension read four int8 numbers as one word.
ALIGNMENTS = {
    "neon": 4, "avx2": 8, "avx512": 16,
    "cortex-m": 4,
    "cuda-tf32": 4, "cuda-fp16": 8, "cuda-int8": 16,
    "a100-tf32": 32, "a100-fp16": 64, "a100-int8": 128,
}  # fmt: skip


def aligned(round_to: int | str) -> int:
    """`round_to` as a number.

    Raises:
        PlanError: neither a whole number nor a name of `ALIGNMENTS`.

    Example:
        >>> aligned(4), aligned("avx2")
        (4, 8)
    """
    if isinstance(round_to, str):
        if round_to not in ALIGNMENTS:
            raise PlanError(f"round_to={round_to!r} is unknown: use a number, or one of {', '.join(ALIGNMENTS)}")
        return ALIGNMENTS[round_to]
    if not isinstance(round_to, int):
        raise PlanError(f"round_to={round_to!r}: use a whole number of units, or one of {', '.join(ALIGNMENTS)}")
    return round_to
