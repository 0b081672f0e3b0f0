"""Silence for what other libraries log as warnings, such as kernels that a machine lacks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_logged_warnings() -> Iterator[None]:
    """Within the context, messages up to the level of warnings are not logged.

    Example:
        >>> import logging
        >>> with without_logged_warnings():
        ...     logging.getLogger("library").isEnabledFor(logging.WARNING)
        False
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
