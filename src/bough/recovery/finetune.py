"""`finetune`: train a model, thinly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.calibration import Data, Loss, as_model_loss, as_output_loss, calling_convention
from bough.errors import TrainingError
from bough.recovery.attach import Regularizer
from bough.recovery.homes import homes_kept
from bough.recovery.launch import Accelerator, accelerating, prepared_anew
from bough.recovery.loop import Run, Task
from bough.recovery.training import Trained, Training


def finetune(
    model: nn.Module,
    train: Any,
    training: Training | None = None,
    *,
    loss: Loss | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    optimizer: Optimizer | None = None,
    regularizers: Sequence[Regularizer] = (),
    callback: Callable[[dict[str, Any]], object] | None = None,
    accelerator: Accelerator | None = None,
) -> Trained:
    """Trains a model in place, on whatever `accelerate` finds: this process, or all that `accelerate launch` started; a GPU
    where there is one. The model ends on the device where it was before.

    With `training.folder`, a run that was killed at any moment goes on where it was and ends with the same weights, bit for
    bit, on the same machine. A batch is shared by all processes, so their number changes nothing but rounding (and batch
    norm, whose statistics are each process's own).

    Args:
        train: a DataLoader, a Dataset, or any iterable of batches that can be gone through again, such as a list or a
            `bough.importance.Data`; its batches are those of all processes together.
        training: the options.
        loss: (output, batch) -> mean over the batch; or, told by the names of its parameters, (model, batch) as for `score` and
            (output, labels) as `F.cross_entropy`, see `bough.calibration.losses`. Unless given, the output's own `loss`, or
            cross-entropy with `batch[1]`.
        forward: (model, batch) -> output; unless given, `model(batch[0])`, or `model(**batch)` for a mapping.
        evaluate: model -> metric, after each epoch, in eval mode, where it is trained: inputs go to its parameters' device;
            the weights of the best epoch are kept, of those in which no regularizer had anything left to do (lasso and
            penalties always have: there the last weights count).
        optimizer: an own one, such as one carried through a cut; its learning rates are scaled by the schedule.
        regularizers: see `bough.recovery.regularize`; also masks of lottery tickets.
        callback: told {"step", "epoch", "loss", "lr"} after each step; may run the model, in whatever mode.
        accelerator: an own `accelerate.Accelerator`; its precision and accumulation then hold.

    Raises:
        TrainingError: accelerate is absent, the loss is not finite, or the folder holds another run.
        CheckpointError: the state in the folder is damaged.

    Example:
        >>> import torch, bough
        >>> from torch.utils.data import TensorDataset
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(96, 4)
        >>> done = finetune(net, TensorDataset(x, (x[:, 0] > 0).long()), Training(epochs=2, batch_size=32))
        >>> done.steps, len(done.epochs)
        (6, 2)
    """
    check_arguments(finetune, locals())
    run = forward or forward_of(train)
    if loss is not None and calling_convention(loss, "output") == "model":
        task = Task(lambda model, batch: model, as_model_loss(loss, run), evaluate, callback)
    else:
        task = Task(run, as_output_loss(loss) if loss is not None else batch_loss, evaluate, callback)
    training = training or Training()
    kept = homes_kept(model, optimizer=optimizer)
    with kept, prepared_anew(model, accelerator), accelerating(training, accelerator) as here:
        return Run(model, train, task, training, optimizer, regularizers, here)()


def forward_of(train: Any) -> Callable[[nn.Module, Any], Any]:
    """Return how a batch of the training data is given to a model: as its `Data` says, if it is one, else `run_batch`."""
    return train.forward if isinstance(train, Data) and train.forward is not None else run_batch


def run_batch(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch: keyword arguments, or a tuple whose first item is the input."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def batch_loss(output: Any, batch: Any) -> Tensor:
    """The loss that the output brings, or cross-entropy of its logits (see `classes_dim`) with `batch[1]`."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        logits, labels = logits_of(output), batch[1]
        try:
            return F.cross_entropy(logits.movedim(classes_dim(logits, labels), 1) if logits.dim() > 2 else logits, labels)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(
                f"no cross-entropy of logits {list(logits.shape)} and the batch's second part: {error}. Give labels that "
                "number the classes, or loss=(output, batch) -> Tensor"
            ) from None
    raise TrainingError("the output has no loss and the batch is no pair (inputs, labels): give loss=(output, batch) -> Tensor")


def classes_dim(logits: Tensor, labels: Tensor) -> int:
    """The dim of logits of three dims and more that labels [N, ...] leave for the classes: 1 or the last.

    Raises:
        TrainingError: it could be either.
    """
    last, first = labels.shape == logits.shape[:-1], labels.shape == logits.shape[:1] + logits.shape[2:]
    if last and first:
        raise TrainingError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)}: classes may be in dim 1 or in the last; give "
            "loss=(output, batch) -> Tensor, and Distillation(dim=)"
        )
    return -1 if last else 1


def logits_of(output: Any) -> Tensor:
    """The logits in an output: a tensor, the field `logits`, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, (tuple, list)) and isinstance(output[0], Tensor):
        found = output[0]
    if not isinstance(found, Tensor):
        raise TrainingError(f"no logits in a {type(output).__name__}: give a forward that returns a tensor")
    return found
