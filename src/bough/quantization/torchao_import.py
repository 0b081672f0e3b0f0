"""torchao, which quantizes programs: imported where it is used, without what it logs of kernels that a machine lacks."""

from __future__ import annotations

from bough.errors import BoughError, QuantizationError
from bough.logged_warnings import without_logged_warnings


def require_torchao(purpose: str = "quantize", error: type[BoughError] = QuantizationError) -> None:
    """Import torchao, which registers the operators of quantized programs.

    Args:
        purpose: what needs it, for the message.
        error: the class to raise.

    Raises:
        BoughError: of the class `error`; torchao is not installed.
    """
    try:
        with without_logged_warnings():
            import torchao.quantization.pt2e  # noqa: F401
    except ImportError as missing:
        raise error(f"{purpose} needs {missing.name}: pip install bough[quantize]") from None
