"""A forward pass that pauses at chosen operators and continues later.

Each pass runs in a thread of its own, and only one thread runs at a time: `advance` resumes the thread, and `pause`, called
from a tap inside the pass, returns control to the caller of `advance`. So the layers before a pause are computed once,
however the model's forward is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from threading import Semaphore, Thread, local

import torch
from torch import Tensor, nn

from bough.calibration.thread_state import in_state_of_caller
from bough.tracing.capture.attribute_numbers import Holder, notes, put

TapPoint = tuple[int, bool]
"""(index of an operator, True for its results and False for its arguments)."""

Observed = Mapping[TapPoint, list[Tensor]]
"""Tensors observed in a run, by tap point."""


MAX_PAUSED = 256
"""Maximum number of batches whose runs are paused at a time; each run takes a thread."""


class _RunClosed(BaseException):
    """Unwinds a run that was closed; not an Exception, so that `except Exception` in a model does not catch it."""


_THREAD = local()


class StagedRun:
    """A run of `work`, one stage at a time, without gradients.

    The thread has the state (autocast, inference mode, default device) of the thread that creates the run.

    Args:
        model: the model that `work` calls; attributes that its forward sets are kept separately for each run.
        work: the run.

    Attributes:
        stage: the stage that the run advances to.
        observed: tensors recorded by taps.
    """

    def __init__(self, model: nn.Module, work: Callable[[], object]) -> None:
        self.stage = -1
        self.observed: dict[TapPoint, list[Tensor]] = {}
        self._thread = Thread(target=in_state_of_caller(partial(self._run, work)), daemon=True)
        self._error: BaseException | None = None
        self._resume, self._returned = Semaphore(0), Semaphore(0)
        self._is_closing = False
        self._ended = False
        self._holders = notes(model)
        self._attributes: list[Holder] | None = None

    def advance(self, stage: int) -> None:
        """Run up to the pause of a stage, or to the end; re-raise errors of the run."""
        self.stage = stage
        outside = self._swap(self._attributes) if self._attributes is not None else [copy(h) for h in self._holders]
        if not self._thread.ident:
            self._thread.start()
        self._resume.release()
        self._returned.acquire()
        self._attributes = self._swap(outside)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the run at its current pause and free what it observed."""
        self._is_closing = True
        self.observed.clear()
        if self._thread.is_alive():
            self._resume.release()
            self._thread.join()

    @property
    def is_done(self) -> bool:
        """True if the run has ended."""
        return self._ended

    def pause(self) -> None:
        """Return control to the caller of `advance`; to be called inside the run."""
        self._returned.release()
        self._resume.acquire()
        if self._is_closing:
            raise _RunClosed

    def _run(self, work: Callable[[], object]) -> None:
        _THREAD.run = self
        self._resume.acquire()
        try:
            with torch.no_grad():
                work()
        except _RunClosed:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._returned.release()

    def _swap(self, contents: list[Holder]) -> list[Holder]:
        """Replace the attributes that the model's forward sets by `contents`; return the previous ones."""
        before = [copy(holder) for holder in self._holders]
        for holder, new in zip(self._holders, contents, strict=True):
            put(holder, new)
        return before


def is_staged() -> bool:
    """Return whether the caller executes in a staged run."""
    return hasattr(_THREAD, "run")


def current_run() -> StagedRun:
    """Return the run in which the caller, a tap, executes."""
    run: StagedRun = _THREAD.run
    return run
