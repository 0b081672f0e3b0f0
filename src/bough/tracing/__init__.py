"""One recorded run of the model, with a type for every axis of every tensor."""

from bough.tracing.groups import observed, with_frozen
from bough.tracing.trace import trace

__all__ = ["observed", "trace", "with_frozen"]
