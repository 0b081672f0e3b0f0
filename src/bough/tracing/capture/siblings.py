"""Modules that no call reached, beside modules like them that were: heads, experts or blocks of which a call chooses some.

Such a module is typed by running it on the inputs of its sibling, right after the sibling, and its output has the type of
the sibling's output: whichever of them is chosen stands in the same place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bough.graph import Beside
from bough.tracing.capture.inputs import with_tensors

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
NUMBER = re.compile(r"\d+")


def unreached_modules(model: nn.Module, read: Collection[str], executed: Collection[str]) -> list[str]:
    """Return the outermost modules of which no part was called and no tensor was read, if they hold tensors.

    Args:
        model: the model.
        read: names of the model's tensors that a run reads.
        called: names of the modules that a run called.
    """
    used = {"", *executed, *(name.rpartition(".")[0] for name in read)}
    used |= {holder for name in used for holder in _holders(name)}
    return [
        name for name, module in model.named_modules()
        if name not in used and name.rpartition(".")[0] in used and any(True for _ in module.parameters())
    ]  # fmt: skip


def _holders(name: str) -> Iterator[str]:
    """Yield the names of the modules around a module."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def siblings_of(model: nn.Module, name: str, executed: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (module, its called siblings that are the most alike) for an unreached module, or for the entries inside it.

    Siblings are entries of one `ModuleList`, `ModuleDict` or `Sequential`, and modules of one class whose names differ by a
    number. Where a sibling is itself a container that is not called, the entries of both are siblings by their names.
    """
    yield from _paired(model, name, siblings_by_name(model, name), executed)


def siblings_by_name(model: nn.Module, name: str) -> list[str]:
    """Return the names of a module's siblings, called or not."""
    holder, _, key = name.rpartition(".")
    parent = model.get_submodule(holder)
    others = {k: m for k, m in parent._modules.items() if m is not None and k != key}
    if not isinstance(parent, _CONTAINERS):
        number, kind = NUMBER.sub("#", key), type(parent._modules[key])
        others = {k: m for k, m in others.items() if NUMBER.sub("#", k) == number != key and type(m) is kind}
    return [f"{holder}.{k}" if holder else k for k in others]


def _paired(
    model: nn.Module, name: str, others: Sequence[str], executed: Collection[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:  # fmt: skip
    module = model.get_submodule(name)
    degrees = {o: difference(module, model.get_submodule(o)) for o in others if o in executed}
    if degrees:
        yield name, tuple(o for o, degree in degrees.items() if degree == min(degrees.values()))
        return
    for key, inner in module._modules.items():
        entries = [f"{o}.{key}" for o in others if key in model.get_submodule(o)._modules]
        if inner is not None and entries:
            yield from _paired(model, f"{name}.{key}", entries, executed)


def difference(module: nn.Module, other: nn.Module) -> int:
    """Return 0 if two modules have the same classes and shapes, 1 if the same classes, and 2 otherwise."""
    if _classes(module) != _classes(other):
        return 2
    return int(_shapes(module) != _shapes(other))


def _classes(module: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(m)) for name, m in module.named_modules()]


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, t.shape) for name, t in module.state_dict(keep_vars=True).items() if isinstance(t, Tensor)]


Ran = Callable[[str, str, Any, Any, Any], None]
"""Called with the unreached module, its sibling, what both were given, and what the sibling and the module returned."""
Failed = Callable[[str, Exception], None]


def no_output(*args: Any) -> None:
    """Do nothing with outputs."""


def run_beside(model: nn.Module, pairs: Iterable[Beside], ran: Ran = no_output, failed: Failed | None = None) -> None:
    """Wrap the forward of siblings such that their first call runs unreached modules on copies of what they are given.

    To be undone with the rest of the instance dictionaries.

    Args:
        model: the model.
        pairs: the unreached modules and their siblings.
        ran: what to do with the outputs.
        failed: what to do where a module does not run on its sibling's inputs; None lets the error through.
    """
    hosts: dict[str, list[str]] = {}
    for pair in pairs:
        hosts.setdefault(pair.sibling, []).append(pair.name)
    modules = dict(model.named_modules())
    for sibling, names in hosts.items():
        host = modules[sibling]
        host.__dict__["forward"] = _beside(host.forward, {n: modules[n] for n in names}, sibling, ran, failed)


def _beside(
    forward: Callable[..., Any], others: Mapping[str, nn.Module], sibling: str, ran: Ran, failed: Failed | None
) -> Callable[..., Any]:
    waiting = dict(others)

    def both(*args: Any, **kwargs: Any) -> Any:
        if not waiting:
            return forward(*args, **kwargs)
        given = with_tensors((args, kwargs), Tensor.clone)  # a module may write into what it is given
        result = forward(*args, **kwargs)
        for name, module in waiting.items():
            own_args, own_kwargs = with_tensors(given, Tensor.clone)
            try:
                output = module(*own_args, **own_kwargs)
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
            else:
                ran(name, sibling, (args, kwargs), result, output)
        waiting.clear()
        return result

    return both
