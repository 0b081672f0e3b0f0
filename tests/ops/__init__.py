"""Ops for the laws of typing rules: name -> (layout, what becomes of the units, options -> op).

A layout says what the op is given (see tests.oracle). What becomes of the units where a sum without weights follows:

- "exact": they can be cut, and come out zero where they are masked;
- "renormalizes": they can be cut, but do not come out zero, or a statistic runs over them;
- "cut": they can be cut; either of the two;
- "held": they could be cut, but what the model's Python (or torch's) computes from the width forbids it;
- "frozen": none of them may go.
"""

from tests.ops import elementwise, layers, rearranging

CASES = {
    f"{module.__name__.rpartition('.')[2]}/{name}": case
    for module in (elementwise, rearranging, layers)
    for name, case in module.CASES.items()
}
