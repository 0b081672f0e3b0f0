"""The command line: `bough inspect | prune | finetune | distill | measure | compare | demo`."""

from __future__ import annotations

import sys

from bough.errors import BoughError


def main() -> None:
    """Runs the command line; an error of bough's, or a file that can not be read or written, is one line on stderr and exit
    status 2."""
    from bough.cli.commands import app

    try:
        app()
    except (BoughError, OSError) as error:
        print(f"bough: {error}", file=sys.stderr)
        raise SystemExit(2) from None
