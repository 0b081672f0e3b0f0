"""Perplexity of causal language models on a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bough.arguments import check_arguments
from bough.errors import TraceError
from bough.measuring.runners import eval_mode


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The exponential of the mean negative log-likelihood of a text's tokens.

    Attributes:
        perplexity: the value.
        tokens: number of tokens that were predicted.
    """

    perplexity: float
    tokens: int

    def to_dict(self) -> dict[str, float]:
        """Return the value and the number of tokens as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.perplexity:.4f} ({self.tokens} tokens)"


@torch.no_grad()
def perplexity(
    model: nn.Module, tokens: Tensor | Sequence[int], *, window: int = 2048, stride: int | None = None, batch_size: int = 1
) -> Perplexity:
    """Return the perplexity of a causal language model on the tokens of a text, in eval mode.

    The tokens are read in windows. Of each window, the tokens that no earlier window has predicted are predicted from those
    before them in the window; the first token of a window has none before it, and does not count.

    Args:
        model: takes token indices [batch, length], and returns logits [batch, length, words], alone, first of a tuple, or as
            the attribute `logits`.
        tokens: of the text, a sequence of at least two indices.
        window: tokens per window, at most what the model can read.
        stride: tokens from the beginning of one window to that of the next; `window` unless given, which reads each token once.
            A smaller one gives each token at least `window - stride` tokens before it.
        batch_size: number of windows that are read together.

    Raises:
        ArgumentError: an argument of another type.
        TraceError: there are fewer than two tokens, window, stride or batch_size is out of range, or the model gives other
            outputs, or NaN.

    Example:
        >>> import torch
        >>> net = torch.nn.Embedding(5, 5)  # a model that predicts from the last token alone
        >>> torch.nn.init.zeros_(net.weight).shape
        torch.Size([5, 5])
        >>> print(perplexity(net, [0, 1, 2, 3, 4, 0], window=3))
        5.0000 (4 tokens)
    """
    check_arguments(perplexity, locals())
    step = window if stride is None else stride
    if window < 2 or not 1 <= step <= window or batch_size < 1:
        raise TraceError(
            f"perplexity(window={window}, stride={stride}, batch_size={batch_size}): window at least 2, stride from 1 to "
            "window, batch_size at least 1"
        )
    text = torch.as_tensor(tokens, dtype=torch.long).flatten()
    if len(text) < 2:
        raise TraceError(f"perplexity needs a text of at least 2 tokens, and it has {len(text)}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    total, count = 0.0, 0
    with eval_mode(model):
        for batch, known in _batches(_windows(len(text), window, step), batch_size):
            ids = torch.stack([text[a:b] for a, b in batch]).to(device)
            logits = _logits(model(ids))
            if logits.dim() != 3 or logits.shape[:2] != ids.shape:
                raise TraceError(
                    f"{type(model).__name__} gives an output {list(logits.shape)} for tokens {list(ids.shape)}: a causal "
                    "language model gives logits [batch, length, words]"
                )
            wanted, got = ids[:, 1:][:, known:], logits[:, :-1][:, known:]
            total += float(F.cross_entropy(got.float().flatten(0, 1), wanted.flatten(), reduction="sum"))
            count += wanted.numel()
    if not math.isfinite(total):
        raise TraceError(f"the loss of {type(model).__name__} on this text is {total}")
    return Perplexity(math.exp(total / count), count)


def _windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, number of predictions that an earlier window has made) of windows with a token to predict."""
    seen = 0  # end of the last window
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        known = max(seen - begin - 1, 0)
        if end - begin - 1 > known:
            yield begin, end, known
        seen = end
        if end == length:
            return


def _batches(windows: Iterator[tuple[int, int, int]], size: int) -> Iterator[tuple[list[tuple[int, int]], int]]:
    """Yield windows of one length and one number of known predictions together."""
    held: list[tuple[int, int]] = []
    form: tuple[int, int] | None = None
    for begin, end, known in windows:
        if held and (len(held) == size or form != (end - begin, known)):
            yield held, form[1] if form else 0
            held = []
        held.append((begin, end))
        form = end - begin, known
    if held and form is not None:
        yield held, form[1]


def _logits(output: Any) -> Tensor:
    """Return the logits of an output."""
    found = getattr(output, "logits", output[0] if isinstance(output, tuple) else output)
    if not isinstance(found, Tensor):
        raise TraceError(f"the model gives a {type(output).__name__}: a causal language model gives logits")
    return found
