"""A stage of a pipeline, what all stages share, and the state that passes from one stage to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import fx, nn

from bough.calibration import Data, Loss
from bough.errors import PipelineError
from bough.planning import Plan


@dataclass(frozen=True, slots=True)
class Shared:
    """What all stages of a pipeline use.

    Attributes:
        example_inputs: as for `trace`.
        train: training data, as for `finetune`; None if there is none.
        data: unlabelled batches for pruning, refit and quantization; None if there are none.
        loss, forward: as for `finetune`.
        evaluate: model -> metric.
        seed: of the pipeline.
        root: the run's folder, in which exported files lie.
        progress: whether stages show progress bars.
    """

    example_inputs: Any
    train: Any
    data: Data | Iterable[Any] | None
    loss: Loss | None
    forward: Callable[[nn.Module, Any], Any] | None
    evaluate: Callable[[nn.Module], float] | None
    seed: int
    root: Path
    progress: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What passes from one stage to the next.

    Attributes:
        model: in float.
        dense: the model before the cut, which teaches and which refit compares with; `model` itself before the cut.
        plan: of the cut; None before it.
        quantized: the program in INT8; None before quantization.
    """

    model: nn.Module
    dense: nn.Module
    plan: Plan | None = None
    quantized: fx.GraphModule | None = None

    @property
    def current(self) -> nn.Module:
        """The model that the next stage exports or evaluates."""
        return self.model if self.quantized is None else self.quantized


@dataclass(frozen=True, slots=True)
class Before:
    """What has happened before a stage: names of the earlier stages, and which data the pipeline has."""

    names: tuple[str, ...]
    has_train: bool
    has_data: bool

    def require(self, stage: str, *, train: bool = False, data: bool = False) -> None:
        """Raise PipelineError unless the pipeline has the data that a stage needs."""
        for name, needed, given in (("train", train, self.has_train), ("data", data, self.has_data)):
            if needed and not given:
                raise PipelineError(f"the stage {stage} needs {name}: Pipeline(..., {name}=...)")


class Stage(Protocol):
    """One stage of a pipeline, a frozen dataclass of its options.

    Attributes:
        name: of the stage, in the report and in the names of folders.
    """

    name: ClassVar[str]

    def check(self, before: Before) -> None:
        """Raise an error if the stage can not run after these stages and with this data, or a package is missing."""
        ...

    def run(self, state: State, shared: Shared, folder: Path) -> tuple[State, dict[str, Any]]:
        """Do the work, resume it if it was begun in the folder, and write what `restore` reads.

        Returns:
            The new state, and details for the report as plain values.
        """
        ...

    def restore(self, state: State, shared: Shared, folder: Path) -> State:
        """Return the state after the stage from what `run` wrote; the same one, bit for bit."""
        ...

    def outputs(self, root: Path, folder: Path) -> tuple[Path, ...]:
        """Return the files that exist once the stage is done."""
        ...
