"""Everything bough raises for its users.

BoughError
├── ArgumentError         an argument of the wrong type (a TypeError, too)
├── TraceError            the model could not be run, or the example inputs do not fit it
├── ExportError           a model that can not be exported, or a file that is damaged or differs from the model
├── QuantizationError     a model that can not be quantized, or not as well as asked for
├── BudgetError           a budget that cannot be read, or cannot be reached
├── PlanError             a plan that does not fit: another model, no prunable group, an unknown name
│   └── ConflictError     the model's own Python contradicts the plan
├── VerificationError     a cut model that is not the masked original
├── TrainingError         a training run that can not start, go on or be resumed
├── PipelineError         a pipeline whose stages do not fit together, or whose folder holds another
├── ComparisonError       a comparison that can not start, or whose folder holds another
├── SearchError           a search that can not start or go on, or whose study holds another
├── CheckpointError       a checkpoint that is missing, damaged or of another version
├── WriteError            a file that can not be written, such as on a full disk
└── ModelReferenceError   a model name on the command line that leads nowhere
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

_SHOWN = 6


class BoughError(Exception):
    """Base of every error that bough raises on purpose; its message says what, where and what to do."""


class ArgumentError(BoughError, TypeError):
    """An argument of the wrong type; the message names it and shows what is meant."""


class TraceError(BoughError):
    """The model could not be run on the example inputs."""


class ExportError(BoughError):
    """A model that can not be exported, or an exported file that is damaged or gives other outputs than the model."""


class QuantizationError(BoughError, ValueError):
    """A model that can not be quantized, or not as well as asked for."""


class BudgetError(BoughError, ValueError):
    """A budget that cannot be read or cannot be reached."""


class PlanError(BoughError, ValueError):
    """A plan, or a request for one, that does not fit the model."""


class ConflictError(PlanError):
    """The model's own Python contradicts the plan: stale integers, scalars or control flow."""


class VerificationError(BoughError):
    """The cut model is not the masked original.

    Attributes:
        result: what would have been returned, with the cut model, the plan and the verification.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class TrainingError(BoughError):
    """A training run that can not start, go on or be resumed."""


class PipelineError(BoughError, ValueError):
    """A pipeline whose stages do not fit together, or whose folder holds another."""


class ComparisonError(BoughError, ValueError):
    """A comparison that can not start, or whose folder holds another."""


class SearchError(BoughError, ValueError):
    """A search that can not start or go on, or whose study holds another."""


class CheckpointError(BoughError):
    """A checkpoint that is missing, damaged, or made by another version."""


class WriteError(BoughError, OSError):
    """A file or folder that can not be written; what was there before is still there."""


class ModelReferenceError(BoughError):
    """A model reference of the command line that leads nowhere."""


def names_in(given: Any, option: str) -> tuple[str, ...]:
    """The names that an option was given: one, or an iterable of them.

    Raises:
        PlanError: it is something else.
    """
    found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(name, str) for name in found):
        raise PlanError(f"{option}={given!r}: give a name or a list of names")
    return found


def instead(name: str, names: Iterable[str]) -> str:
    """What to say to one who gave an unknown name: the nearest of those there are, or some of them."""
    there = list(names)
    near = get_close_matches(name, there, 3)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"there are: {', '.join(there[:_SHOWN]) or 'none'}{', ...' if len(there) > _SHOWN else ''}"


def first_line(error: BaseException) -> str:
    """Return an exception's message up to its first line break, or its type where the message is empty."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def cause(error: BaseException) -> str:
    """Return the type and the first line of the error that an error was raised from, in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"
