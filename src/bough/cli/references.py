"""References `module:callable` to code of the user's own: find it, call it, and report its errors in one line."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn

from bough.errors import BoughError, ModelReferenceError, cause, first_line


def find(reference: str) -> Any:
    """Return the object that a reference `module:name` names; `name` may be dotted.

    Raises:
        ModelReferenceError: the module can not be imported, or has no such name.
    """
    module, colon, name = reference.partition(":")
    if not colon or not name:
        raise ModelReferenceError(f"{reference!r} is no reference: write module:callable")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    found = imported(module, reference)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ModelReferenceError(f"{reference}: the module {module} has no callable {name}")
    return found


def imported(module: str, reference: str, hint: str = "") -> Any:
    """Import a module that a reference needs; `hint` ends the message where that fails.

    Raises:
        ModelReferenceError: it can not be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # what the module's own code raises, too
        raise ModelReferenceError(
            f"{reference} needs the module {module}, which can not be imported ({cause(error)}){hint}"
        ) from error


def call(reference: str, *args: Any) -> Any:
    """Call what a reference names.

    Raises:
        ModelReferenceError: it is no callable, takes other arguments, or raises.
    """
    function = find(reference)
    if not callable(function):
        raise ModelReferenceError(f"{reference} is a {type(function).__name__}, not a callable")
    missing = _not_given(function, len(args))
    if missing:
        raise ModelReferenceError(
            f"{reference} needs arguments ({', '.join(missing)}): name a function that can be called as "
            f"{reference.rpartition(':')[2]}({', '.join('...' for _ in args)})"
        )
    with user_code(reference):
        return function(*args)


@contextmanager
def user_code(reference: str) -> Iterator[None]:
    """Report an exception of the user's own code in one line: what was raised, where, and how to see the traceback.

    Raises:
        ModelReferenceError: the code raised something that is no error of bough's.
    """
    try:
        yield
    except (BoughError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if frame.filename == __file__ else f"{os.path.basename(frame.filename)}, line {frame.lineno}; "
        raise ModelReferenceError(
            f"{reference} raised {type(error).__name__}: {first_line(error)} ({where}--debug shows the traceback)"
        ) from error


def positional(function: Callable[..., Any]) -> tuple[int, float] | None:
    """Return the least and the largest number of positional arguments that a callable takes; None if that is not known.

    One that needs keyword arguments can not be called with any number of them: (0, -1).
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return 0, -1
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    most = float("inf") if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(places)
    return sum(p.default is p.empty for p in places), most


def with_options(text: str, **available: Any) -> Any:
    """Return an object of the user's own: what "module:name" names, or "module:name(option=value)" makes.

    A class is called, with its options and with those of `available` that its `__init__` takes; a function with options is
    bound to them.

    Raises:
        ModelReferenceError: there is no such object, or it does not take the options.

    Example:
        >>> with_options("bough.importance:Magnitude(p=1)"), with_options("bough.importance:GroupNorm")
        (Magnitude(p=1), GroupNorm(p=2.0))
    """
    reference, bracket, _ = text.partition("(")
    options = _options(text) if bracket else {}
    found = find(reference.strip())
    if isinstance(found, type):
        takes = inspect.signature(found).parameters
        given = {n: v for n, v in available.items() if n in takes and n not in options and v is not None}
        with user_code(text):
            return found(**given, **options)
    if not callable(found):
        raise ModelReferenceError(f"{reference} is a {type(found).__name__}: a class, a function or a callable is wanted")
    if not options:
        return found
    with user_code(text):
        inspect.signature(found).bind_partial(**options)

    @wraps(found)  # attributes such as needs_data, too
    def bound(*args: Any, **kwargs: Any) -> Any:
        return found(*args, **kwargs, **options)

    return bound


def is_reference(text: str) -> bool:
    """Return whether a name is a reference to code of the user's own, not the name of something of bough's."""
    return ":" in text.partition("(")[0]


def _options(text: str) -> dict[str, Any]:
    name, _, rest = text.partition("(")
    try:
        made = ast.parse(f"f({rest}".strip(), mode="eval").body
        if not isinstance(made, ast.Call) or made.args:
            raise ValueError
        return {str(k.arg): ast.literal_eval(k.value) for k in made.keywords}
    except (SyntaxError, ValueError):
        raise ModelReferenceError(
            f"{text!r}: options are numbers, strings, True or False, as in {name.strip()}(step=2, relative=True)"
        ) from None


def _not_given(function: Callable[..., Any], count: int) -> list[str]:
    """Return the names of the arguments without a default beyond the first `count`."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return [p.name for p in needed if p not in places]


def model_function(reference: str, option: str) -> Callable[[nn.Module], Any]:
    """Return a function of the user's own that takes the model alone."""
    function = find(reference)
    takes = positional(function) if callable(function) else (0, -1)
    if takes is not None and not takes[0] <= 1 <= takes[1]:
        raise ModelReferenceError(f"{option} {reference}: a function of one argument is wanted, fn(model)")

    @wraps(function)
    def call(model: nn.Module) -> Any:
        with user_code(reference):
            return function(model)

    return call
