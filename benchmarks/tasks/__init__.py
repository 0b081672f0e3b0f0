"""The models with real data that the benchmarks of accuracy run on: pretrained ones, and others that are trained here.

    python -m benchmarks.tasks --data PATH [NAME ...]

trains what is not in the folder `.tasks` yet and prints the dense models' metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

from benchmarks.tasks import cifar_models, dense_prediction, keywords, mlperf, pretrained, speech
from benchmarks.tasks.task import Task

__all__ = ["TASKS", "Task"]

TASKS: dict[str, Callable[[ModuleType, int], Task]] = {
    "resnet56": pretrained.resnet56,
    "mobilenetv1_025": pretrained.mobilenet,
    "stories260k": pretrained.stories,
    "resnet20": cifar_models.resnet20,
    "resnet8": cifar_models.resnet8,
    "resnet8_mlperf": mlperf.resnet8_mlperf,
    "mobilenetv1_cifar": mlperf.mobilenetv1_cifar,
    "vit": cifar_models.vit,
    "plain_cnn": cifar_models.plain,
    "speech_gru": speech.speech_gru,
    "dscnn": speech.dscnn,
    **{f"kws{split}": partial(keywords.keywords, split=split) for split in range(3)},
    "super_resolution": dense_prediction.super_resolution,
    "unet": dense_prediction.unet,
}
