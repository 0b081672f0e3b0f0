"""Low-rank adapters (LoRA) of the library peft, for the duration of one training run: added, trained alone, and merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from math import inf
from typing import Any

from torch import nn

from bough.arguments import check_fields
from bough.errors import TrainingError
from bough.recovery.training.seeding import seed_all
from bough.tracing.capture.randomness import unchanged_rng


@dataclass(frozen=True, slots=True)
class LoRA:
    """Train low-rank adapters instead of weights: W + (alpha / rank) B A, of which only A and B are trained.

    At the end of the run the product is added to the weights, and the adapters are gone: the model has the modules and shapes
    that it had. Needs peft: pip install 'bough[lora]'.

    Source: Hu et al., 2022.

    Attributes:
        rank: number of rows of A.
        alpha: numerator of the factor.
        dropout: probability of dropping inputs of A, from 0 to below 1.
        targets: names of modules, or patterns such as "*.q_proj"; unless given, all linear layers whose weight is not shared
            with another module.

    Raises:
        ArgumentError: an option of another type.
        TrainingError: an option out of range.

    Example:
        >>> LoRA(rank=4, targets=["*.q_proj", "*.v_proj"]).alpha
        16.0
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rank < 1 or not 0 < self.alpha < inf or not 0 <= self.dropout < 1:
            raise TrainingError(
                f"LoRA(rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}): rank at least 1, alpha above 0, dropout "
                "from 0 to below 1"
            )
        if self.targets is not None and not len(self.targets):
            raise TrainingError("LoRA(targets=[]) names no module: leave targets out for all linear layers")


@contextmanager
def adapted(model: nn.Module, lora: LoRA | None, seed: int, **excluded: object) -> Iterator[None]:
    """Add adapters to a model in place; on exit merge them into its weights, or remove them if the context raises.

    Args:
        model: is changed.
        lora: the options; None leaves the model as it is.
        seed: of the initial adapters.
        excluded: arguments of the trainer that refer to the weights, by name; none may be given.

    Raises:
        TrainingError: peft is not installed, a target names no module that peft adapts, or an excluded argument is given.
    """
    if lora is None:
        yield
        return
    given = next((name for name, value in excluded.items() if value), None)
    if given is not None:
        raise TrainingError(f"lora and {given} exclude each other: {given} refers to weights, and lora trains adapters")
    if find_spec("peft") is None:
        raise TrainingError("lora needs peft: pip install 'bough[lora]'")
    flags = [(p, p.requires_grad) for p in model.parameters()]
    attributes = dict(vars(model))
    names = _targets(model, lora)
    merged = False
    try:
        with unchanged_rng():
            seed_all(seed, "lora")
            _inject(model, lora, names)
        yield
        merged = True
    finally:
        _remove(model, merge=merged)
        for name in vars(model).keys() - attributes.keys():
            del vars(model)[name]
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _targets(model: nn.Module, lora: LoRA) -> list[str]:
    """Return the names of the modules that get adapters."""
    modules = dict(model.named_modules())
    if lora.targets is None:
        owners = Counter(id(p) for m in modules.values() for p in m.parameters(recurse=False))
        names = [n for n, m in modules.items() if isinstance(m, nn.Linear) and n and owners[id(m.weight)] == 1]
        if not names:
            raise TrainingError(f"{type(model).__name__} has no linear layers of its own: name modules in LoRA(targets=[...])")
        return names
    names = []
    for target in lora.targets:
        found = [n for n in modules if n == target or fnmatchcase(n, target)]
        if not found:
            raise TrainingError(f"LoRA(targets=[{target!r}]): {type(model).__name__} has no such module")
        names += found
    return list(dict.fromkeys(names))


def _inject(model: nn.Module, lora: LoRA, names: Sequence[str]) -> None:
    """Put adapters in place of modules."""
    import peft

    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(names), bias="none"
    )  # fmt: skip
    try:
        peft.inject_adapter_in_model(config, model)
    except (ValueError, ImportError) as error:
        raise TrainingError(f"peft can not add adapters: {str(error).strip().splitlines()[0]}") from error


def _remove(model: nn.Module, merge: bool) -> None:
    """Put the modules back in place of their adapters, with the adapters merged into their weights or without."""
    adapters: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if hasattr(m, "get_base_layer")]
    for name, adapter in adapters:
        if merge:
            adapter.merge()
        holder, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(holder), attribute, adapter.get_base_layer())
