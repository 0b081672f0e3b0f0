"""`OpSpec`: all that bough knows about one operator of torch, under its ATen name.

The files of this folder register functions and traits, one file per family: to support an operator, or to teach bough more
about one, is an entry in the file of its family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from bough.spaces import Space


class RecordedOp(Protocol):
    """The part of a recorded op that specs read; see `bough.graph.OpRecord`."""

    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> Sequence[tuple[Space, ...]]: ...
    @property
    def results(self) -> Sequence[tuple[Space, ...]]: ...
    @property
    def detail(self) -> tuple[Any, ...]: ...


Place = tuple[int, int]
"""(tensor argument, dim)."""
TypingRule = Callable[..., Any]
"""(context, call, result) -> the types of the results; see `bough.ops.context`."""
Places = Callable[[RecordedOp], Iterator[tuple[Place, ...]]]
"""The axes over which a recorded op sums products: for each, the places where its operands have it."""
Shape = Callable[..., Any]
"""The op on tensors of the meta device, or `NotImplemented` for a form that it does not know."""
Rewrite = Callable[[Any], dict[str, Any]]
"""(site) -> {integer argument: its value after a cut}; see `bough.ops.rewriting`."""


@dataclass(slots=True)
class OpSpec:
    """What is known about one operator; a field at its default is not known, or does not apply.

    Attributes:
        typing: types the results, and unifies the axes that the op matches up.
        contracts: the axes over which it sums products of two operands.
        contracts_within: such axes inside an op that is more than one product, as recurrent layers are.
        shape: a fast equivalent of torch's own meta function.
        rewrite: the integers among its arguments after a cut, in an exported program.
        parameters: names of its arguments in order, where torch's Python API gives it whole to the stream of ops.
        rearranges: gives the values that it is given, in another shape or number.
        passes_layers: a layer that can be left out may pass its result through the op.
        reads_values: gives the model's Python what is in a tensor, and no tensor.
        lengths: takes integers that its result's shapes depend on.
        draws: gives random numbers between 0 and 1.
        timed: timed by itself in latency tables, beside ops with MACs.
        moves_numbers: moves or compares integers that number units, and leaves them as they are.
        picks: picks units by integers.
        index_at: position of the argument with these integers, where all others carry values.
        ignores_values: does not look at the values of its argument.
        counts: counts integers or booleans.
        orders: compares numbers.
        numbers_units: takes its integers for numbers of units.
    """

    typing: TypingRule | None = None
    contracts: Places | None = None
    contracts_within: Places | None = None
    shape: Shape | None = None
    rewrite: Rewrite | None = None
    parameters: tuple[str, ...] = ()
    rearranges: bool = False
    passes_layers: bool = False
    reads_values: bool = False
    lengths: bool = False
    draws: bool = False
    timed: bool = False
    moves_numbers: bool = False
    picks: bool = False
    index_at: int | None = None
    ignores_values: bool = False
    counts: bool = False
    orders: bool = False
    numbers_units: bool = False


SPECS: dict[str, OpSpec] = {}
_UNKNOWN = OpSpec()
_Function = TypeVar("_Function", bound=Callable[..., Any])


def spec(name: str) -> OpSpec:
    """Return what is known about an op by its ATen name, without overload; an empty spec if nothing is."""
    return SPECS.get(name, _UNKNOWN)


def base_name(name: str) -> str:
    """Return an op's name without the underscore of its in-place form; private ops (`_softmax`) keep theirs.

    Example:
        >>> base_name("add_"), base_name("_softmax")
        ('add', '_softmax')
    """
    return name if name.startswith("_") else name.rstrip("_")


def traits(*names: str, **values: Any) -> None:
    """Set fields of the specs of some ops."""
    for name in names:
        entry = SPECS.setdefault(name, OpSpec())
        for field, value in values.items():
            assert getattr(entry, field) == getattr(_UNKNOWN, field), (name, field)
            setattr(entry, field, value)


def _registers(field: str) -> Callable[..., Callable[[_Function], _Function]]:
    def names_of(*names: str) -> Callable[[_Function], _Function]:
        def register(function: _Function) -> _Function:
            traits(*names, **{field: function})
            return function

        return register

    return names_of


rule = _registers("typing")
"""Register a typing rule for ops by their ATen name, without overload and without the underscore of in-place forms."""
contracts = _registers("contracts")
"""Register the axes that ops sum products over."""
contracts_within = _registers("contracts_within")
"""Register the axes that ops of several products sum over."""
on_shapes = _registers("shape")
"""Register the op on tensors of the meta device."""
rewrites = _registers("rewrite")
"""Register the integer arguments of an op after a cut."""
