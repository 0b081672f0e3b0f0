"""Zero-shot and few-shot tasks of language models, by the library lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from bough.arguments import check_arguments
from bough.errors import TraceError
from bough.measuring.runners import eval_mode


def zero_shot(
    model: nn.Module, tokenizer: Any, tasks: str | Sequence[str], *, task_folder: str | Path | None = None, shots: int = 0,
    limit: int | None = None, batch_size: int = 1,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return the metrics of a causal language model on tasks of lm-eval: {task: {metric: value}}.

    Needs lm-eval: pip install 'bough[lm-eval]'. Most tasks of lm-eval fetch their data when they are first used; those in
    `task_folder` may read local files.

    Source: Gao et al., the Language Model Evaluation Harness.

    Args:
        model: of Hugging Face transformers, pruned or not; runs in eval mode on its device.
        tokenizer: of the model, as `transformers.AutoTokenizer.from_pretrained` returns it.
        tasks: name of a task of lm-eval, or several.
        task_folder: folder with task files of your own (YAML).
        shots: number of solved examples before each question.
        limit: number of samples per task; all unless given.
        batch_size: number of requests that are read together.

    Raises:
        ArgumentError: an argument of another type.
        TraceError: lm-eval is not installed, the model is none of transformers, shots, limit or batch_size is out of range, or
            lm-eval has no such task.

    Example:
        >>> metrics = zero_shot(model, tokenizer, "arc_easy", limit=100)  # doctest: +SKIP
        >>> metrics["arc_easy"]["acc"]  # doctest: +SKIP
        0.31
    """
    check_arguments(zero_shot, locals())
    if find_spec("lm_eval") is None:
        raise TraceError("zero-shot evaluation needs lm-eval: pip install 'bough[lm-eval]'")
    if shots < 0 or (limit is not None and limit < 1) or batch_size < 1:
        raise TraceError(
            f"zero_shot(shots={shots}, limit={limit}, batch_size={batch_size}): shots not negative, limit and "
            "batch_size at least 1"
        )
    if not hasattr(model, "config"):
        raise TraceError(f"{type(model).__name__} is no model of Hugging Face transformers, which lm-eval evaluates")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = [tasks] if isinstance(tasks, str) else list(tasks)
    manager = TaskManager(include_path=None if task_folder is None else str(task_folder))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        where = f" nor in {task_folder}" if task_folder is not None else "; name a folder of your own with task_folder"
        raise TraceError(f"there is no task {unknown[0]!r} in lm-eval{where}")
    with eval_mode(model):
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size), tasks=names, task_manager=manager,
            num_fewshot=shots, limit=limit, bootstrap_iters=0,
        )  # fmt: skip
    return {task: _metrics(values) for task, values in found["results"].items()}


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers among what lm-eval gives for a task, by metric and, where one is applied, filter."""
    numbers = {key: float(v) for key, v in values.items() if isinstance(v, (int, float)) and "stderr" not in key and "," in key}
    return {key.removesuffix(",none"): value for key, value in numbers.items()}
