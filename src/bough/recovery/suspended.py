"""A run of a model that stops on its way and goes on later.

A batch runs in a thread of its own, and only one thread runs at a time: `advance` lets it go, `stop` (called from a tap
within the run) hands back. So what a model has computed up to a layer is computed once, whatever its Python looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from threading import Semaphore, Thread, local
from typing import Any

import torch
from torch import Tensor, nn

from bough.recovery.thread_state import in_state_of_caller
from bough.tracing.held import Holder, notes, put


class _Closed(BaseException):
    """Unwinds a run that nobody waits for; no Exception, so that a model does not take it for its own."""


_HERE = local()


class Suspended:
    """A run of `work`, up to a stage at a time; `seen` is what its taps keep for whoever advances it.

    It runs as in the thread that makes it (autocast, inference mode, default device), but without gradients.
    """

    def __init__(self, model: nn.Module, work: Callable[[], Any]) -> None:
        self.until = -1
        self.seen: dict[Any, list[Tensor]] = {}
        self._thread = Thread(target=in_state_of_caller(partial(self._run, work)), daemon=True)
        self._error: BaseException | None = None
        self._go, self._back = Semaphore(0), Semaphore(0)
        self._closing = False
        self._holders = notes(model)
        self._notes: list[Holder] | None = None

    def advance(self, until: int) -> None:
        """Runs up to the pause at stage `until`, or to the end; what fails in the run is raised here."""
        self.until = until
        outside = self._swap(self._notes) if self._notes is not None else [copy(h) for h in self._holders]
        if not self._thread.ident:
            self._thread.start()
        self._go.release()
        self._back.acquire()
        self._notes = self._swap(outside)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the run where it stands."""
        self._closing = True
        self.seen.clear()
        if self._thread.is_alive():
            self._go.release()
            self._thread.join()

    def stop(self) -> None:
        """Called in the run: hands back to `advance`."""
        self._back.release()
        self._go.acquire()
        if self._closing:
            raise _Closed

    def _run(self, work: Callable[[], Any]) -> None:
        _HERE.run = self
        self._go.acquire()
        try:
            with torch.no_grad():
                work()
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._back.release()

    def _swap(self, own: list[Holder]) -> list[Holder]:
        """Puts what this run's forward has noted in place of what stands there, and gives that."""
        before = [copy(holder) for holder in self._holders]
        for holder, contents in zip(self._holders, own, strict=True):
            put(holder, contents)
        return before


def running() -> Suspended:
    """The run that the caller, a tap, is called in."""
    run: Suspended = _HERE.run
    return run
