"""`finetune`: train a model in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bough.arguments import check_arguments
from bough.calibration import Loss, as_model_loss, as_output_loss, calling_convention
from bough.recovery.training.accelerate import Accelerator, open_accelerator, unprepared
from bough.recovery.training.devices import restore_devices
from bough.recovery.training.loop import TrainingRun, TrainingTask
from bough.recovery.training.lora import LoRA, adapted
from bough.recovery.training.optimizer_hooks import Regularizer
from bough.recovery.training.options import Trained, Training
from bough.recovery.training.quantization_aware import QuantizationAware, trainee
from bough.recovery.training.run_settings import object_settings
from bough.recovery.training.task_loss import batch_loss, forward_of


def finetune(
    model: nn.Module, train: Any, training: Training | None = None, *,
    loss: Loss | None = None, forward: Callable[[nn.Module, Any], Any] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None, optimizer: Optimizer | None = None,
    regularizers: Sequence[Regularizer] = (), callback: Callable[[dict[str, Any]], object] | None = None,
    accelerator: Accelerator | None = None, quantization: QuantizationAware | None = None,
    lora: LoRA | None = None,
) -> Trained:  # fmt: skip
    """Train a model in place, on the devices that `accelerate` finds: those of `accelerate launch`, or a GPU if there is one.

    The model is moved back to its device at the end; under FSDP2 of accelerate it is sharded, and stays so. With
    `training.folder`, a run that was killed at any moment continues and ends with the same weights, bit for bit, on the same
    machine. A batch is split among all processes, so their number changes nothing but rounding (and batch norm, whose
    statistics are those of each process).

    Args:
        model: is changed.
        train: a DataLoader, a Dataset, or any iterable of batches that can be iterated over several times, such as a list or a
            `bough.importance.Data`; a batch is that of all processes together.
        training: the options.
        loss: (output, batch) -> mean over the batch; or, recognized by the names of its parameters, (model, batch) as for
            `score`, or (output, labels) as `F.cross_entropy`; see `bough.calibration.losses`. Unless given, the output's own
            `loss`, or cross-entropy with `batch[1]`.
        forward: (model, batch) -> output; unless given, `model(batch[0])`, or `model(**batch)` for a mapping.
        evaluate: model -> metric, called after each epoch in eval mode, on the device of training. The weights of the best
            epoch are kept; epochs before all regularizers have settled do not count (lasso and penalties never settle, so
            the last weights are kept).
        optimizer: an optimizer of your own, such as one that was transferred through a cut; the schedule scales its learning
            rates.
        regularizers: see `bough.recovery.regularize`; also masks of lottery tickets.
        callback: called with {"step", "epoch", "loss", "lr"} after each step; may run the model in any mode.
        accelerator: an `accelerate.Accelerator` of your own; its precision and accumulation replace those of `training`.
        quantization: quantization-aware training, see `bough.quantization.QAT`: the program that rounds to INT8 is trained, the
            model stays as it is, and `Trained.quantized` is the result. `evaluate` is called on these programs, too.
        lora: low-rank adapters, which alone are trained and then merged into the weights; excludes `optimizer`, `regularizers`
            and `quantization`.

    Returns:
        A record of the run: steps, losses and metrics of the epochs, the best epoch.

    Raises:
        ArgumentError: an argument of another type.
        TrainingError: accelerate is not installed, or peft for `lora`, the loss is not finite, or the folder holds another run.
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
        parts: tuple[Any, Any] = (lambda model, batch: model, as_model_loss(loss, run))
    else:
        parts = (run, as_output_loss(loss) if loss is not None else batch_loss)
    training = training or Training()
    with adapted(model, lora, training.seed, optimizer=optimizer, regularizers=regularizers, quantization=quantization):
        trained = trainee(model, quantization, evaluate, optimizer, regularizers)
        settings = () if lora is None else object_settings(lora)
        task = TrainingTask(*parts, evaluate, callback, settings, quantization=trained.settings)
        restored = restore_devices(trained.model, optimizer=optimizer)
        with restored, unprepared(trained.model, accelerator), open_accelerator(training, accelerator) as opened:
            done = TrainingRun(trained.model, train, task, training, optimizer, regularizers, opened)()
    return trained.finish(done, evaluate)
