"""One recorded run of the model, with a type for every axis of every tensor."""

from bough.tracing.trace import trace
from bough.tracing.typing.groups import observed, with_frozen

__all__ = ["observed", "trace", "with_frozen"]
