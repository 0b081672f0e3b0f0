"""The command line: `bough inspect | prune | refit | finetune | distill | measure | compare | search | ... | demo`.

Exit status: 0 where the work is done, 1 where it failed (one line on stderr says why), 2 where the command line can not be
understood.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings

from bough.errors import BoughError

FAILED = 1


def main() -> None:
    """Run the command line; an error of bough's, or a file that can not be read or written, is one line on stderr.

    With `--debug` or BOUGH_DEBUG=1 the traceback comes before that line.
    """
    from bough.cli.commands import app, options_of
    from bough.cli.flags import in_flags

    words = [word for word in sys.argv[1:] if word != "--debug"]
    debug = words != sys.argv[1:] or os.environ.get("BOUGH_DEBUG", "0") not in ("", "0")
    if not debug:
        warnings.simplefilter("ignore", FutureWarning)  # of libraries, for those who call them
    try:
        app(words)
    except (BoughError, OSError) as error:
        if debug:
            traceback.print_exception(error)
        print(f"bough: {in_flags(str(error), options_of(words))}", file=sys.stderr)
        raise SystemExit(FAILED) from None
