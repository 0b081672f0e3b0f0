"""Messages in the terms of the command line: an argument of the API is an option of the command that ran."""

from __future__ import annotations

import re
from collections.abc import Collection

from bough.planning import Budget

# What the API's messages show as code, and what takes its place on the command line; longer ones come first.
_SAID = {
    r"table=bough\.LatencyTable\.measure\(graph\), or one that was measured elsewhere": "--table FILE (see `bough table`)",
    r"LatencyTable\.measure\(graph, \.\.\., onto=table\) there, or by with_csv": "`bough table` there, or by its --answers",
    r"an allocator such as bough\.allocation\.Greedy\(\)": "an allocator of your own, module:callable",
    r"lower minimum, round_to or ignore": "lower --minimum, --round-to or --ignore",
    r"loss=fn with fn\(model, batch\) -> a number( \(--loss\))?": "--loss module:fn, with fn(model, batch) -> a number",
    r"criterion\([^()]*, loss\) with loss\(model, batch\)": "--loss module:fn, with fn(model, batch)",
    r"loss=\(output, batch\) -> Tensor": "loss(output, batch) -> Tensor with the task",
    r"bough\.prune\(model, example_inputs, budget, data=batches\)": "give --data module:fn",
    r"data=(loader|batches)( \(--data\))?": "--data module:fn",
    r"bough\.score\(graph, \w+\(\.\.\.\), batches\)": "give --data module:fn",
    r"OBS\(relative=True\) with data": "'obs(relative=True)' with --data module:fn",
    r"\bminimum names": "--minimum names",
    r"plan with drop= by it": "`bough prune --drop` by it",
    r"with bough\.save\(\.\.\., overwrite=True\)": "with --overwrite",
}
_CALLS = re.compile(
    r"\b(?:bough\.)?(?:prune(?:_checkpoint)?|plan|score|compare|refit|finetune|distill|iterate|Training|Distillation)\(([a-z_]+=[^()]*)\)"
)
_ARGUMENT = re.compile(r"(?<![\w.-])([a-z_]+)=(?:(True|False)\b|(?=[\w'\"\[{(.-]))")
_SUBJECT = re.compile(r"^([a-z_]+): ")
_IDENTIFIER = re.compile(r"(?<![\w.'\"-])[a-z]+(?:_[a-z]+)+(?![\w'\"(=])")


def in_flags(message: str, options: Collection[str]) -> str:
    """Return a message of the API with its arguments written as options.

    Args:
        message: what the API says.
        options: names of the parameters of the command that ran; arguments that are no options of it stay as they are.

    Example:
        >>> in_flags("ignore='conv' names no group", {"ignore"}), in_flags("lower round_to", {"round_to"})
        ("--ignore 'conv' names no group", 'lower --round-to')
        >>> in_flags("prune(refit=True) needs data", {"refit"}), in_flags("macs='1 kg' is no budget", {"budget"})
        ('--refit needs data', "--budget macs='1 kg' is no budget")
    """
    for pattern, said in _SAID.items():
        message = re.sub(pattern, said, message)
    message = _CALLS.sub(r"\1", message)
    message = _ARGUMENT.sub(lambda found: _option(found, options), message)
    message = _SUBJECT.sub(lambda found: f"{flag(found[1])}: " if found[1] in options else found[0], message)
    return _IDENTIFIER.sub(lambda found: flag(found[0]) if found[0] in options else found[0], message)


def flag(name: str) -> str:
    """Return the option of a parameter's name."""
    return f"--{name.replace('_', '-')}"


def _option(found: re.Match[str], options: Collection[str]) -> str:
    name, switch = found[1], found[2]
    known = next((n for n in (name, f"{name}s") if n in options), None)  # `compare` takes several of what `plan` takes one
    if known is None:
        bounds = next((n for n in ("budget", "budgets") if n in options), None)
        return f"{flag(bounds)} {found[0]}" if bounds and name in Budget.__dataclass_fields__ else found[0]
    if switch is None:
        return f"{flag(known)} "
    return flag(known) if switch == "True" else flag(f"no_{known}")
