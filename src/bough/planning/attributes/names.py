"""What an attribute's name says: a width of tensors, another quantity, or neither."""

from __future__ import annotations

import re

_WIDTHS = frozenset(
    """channel channels chan chans ch chs feature features feat feats dim dims width widths plane planes inplanes outplanes
    hidden embed embedding embeddings unit units filter filters neuron neurons inner intermediate bottleneck expanded
    groups heads experts nf nc ndf ngf""".split()  # noqa: SIM905
)
_OTHERS = frozenset(
    """kernel stride strides pad padding dilation window img image crop patch grid resolution pool depth depths layer layers
    block blocks stage stages step steps iter iters epoch class classes label labels seed id idx index scale ratio reduction
    position positions pos len length max min seq tokens vocab bins points level levels branches order version rank
    downsample upsample factor divisor""".split()  # noqa: SIM905
)


def names_width(name: str) -> bool:
    """Return whether a name is that of a width, such as num_features or hidden_size.

    Example:
        >>> names_width("num_features"), names_width("img_size"), names_width("k")
        (True, False, False)
    """
    words = _words(name)
    return bool(words & _WIDTHS) and not words & _OTHERS


def names_other(name: str) -> bool:
    """Return whether a name is that of a quantity that is no width, such as kernel_size."""
    words = _words(name)
    return bool(words & _OTHERS) and not words & _WIDTHS


def _words(name: str) -> set[str]:
    return {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
