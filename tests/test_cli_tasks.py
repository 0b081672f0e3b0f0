"""TASK on the command line, and code of the user's own: what is called with what, and what is refused in one line."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import bough
from bough.cli.tasks import task_of
from bough.errors import BoughError, ComparisonError, ModelReferenceError
from bough.importance import Magnitude
from bough.planning.allocation import Greedy
from tests.test_cli import run
from tests.zoo import tasks

HERE = "tests.test_cli_tasks"
SEEDED = "tests.zoo.tasks:same_mlp"
calls: list[str] = []


def train():
    return tasks.five_inputs()[0]


def of_model(model):
    calls.append("model")
    return torch.tensor(0.25)


def of_both(model, validation):
    calls.append(f"{len(validation)} batches")
    return 0.5


def of_either(model, validation=None):
    return of_model(model) if validation is None else of_both(model, validation)


def of_three(model, validation, device):
    raise AssertionError("is not called")


def named(model, *, split):
    raise AssertionError("is not called")


def validation():
    return DataLoader(TensorDataset(torch.zeros(6, 5), torch.zeros(6).long()), 2)


TASKS = {
    "model": lambda: (train(), None, None, of_model),
    "model_beside_validation": lambda: (train(), validation(), None, of_model),
    "both": lambda: (train(), validation(), None, of_both),
    "either": lambda: (train(), None, None, of_either),
    "either_with_validation": lambda: (train(), validation(), None, of_either),
    "no_validation": lambda: (train(), None, None, of_both),
    "three": lambda: (train(), validation(), None, of_three),
    "keyword": lambda: (train(), validation(), None, named),
    "no_function": lambda: (train(), validation(), None, 0.5),
    "dict": lambda: {"train": train(), "evaluate": of_model},
    "misspelled": lambda: {"train": train(), "eval": of_model},
    "no_train": lambda: {"evaluate": of_model},
    "no_data": lambda: (None, validation()),
    "five": lambda: (train(), None, None, None, None),
    "text": lambda: (train(), None, None, lambda model: "good"),
    "breaks": lambda: (train(), None, None, lambda model: 1 / 0),
}
globals().update({f"task_{name}": make for name, make in TASKS.items()})


@pytest.mark.parametrize(
    ("name", "seen", "value"),
    [
        ("model", "model", 0.25),
        ("model_beside_validation", "model", 0.25),
        ("dict", "model", 0.25),
        ("both", "3 batches", 0.5),
        ("either", "model", 0.25),
        ("either_with_validation", "3 batches", 0.5),
    ],
)
def test_both_forms_of_evaluate_are_called(name, seen, value):
    calls.clear()
    metric = task_of(f"{HERE}:task_{name}").metric
    assert metric is not None
    assert metric(tasks.same_mlp()[0]) == value
    assert calls == [seen]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_validation", r"evaluate\(model, validation\) and no validation"),
        ("three", r"evaluate is called as evaluate\(model, validation\) or evaluate\(model\)"),
        ("keyword", r"evaluate is called as evaluate\(model, validation\) or evaluate\(model\)"),
        ("no_function", "float as evaluate: a function is wanted"),
        ("no_data", "NoneType as train"),
        ("misspelled", "a dict that names eval: a task has train, validation, loss, evaluate"),
        ("no_train", "a dict that has no train"),
        ("five", "returned 5 things"),
    ],
)
def test_a_wrong_task_is_refused_before_training(name, message, tmp_path):
    run("prune", SEEDED, "--budget", "params=60%", "--out", str(tmp_path / "small"))
    words = ["finetune", SEEDED, f"{HERE}:task_{name}", "--checkpoint", str(tmp_path / "small"), "--out"]
    with pytest.raises(ModelReferenceError, match=message):
        run(*words, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "message"), [("text", "returned str: a number"), ("breaks", "raised ZeroDivisionError")])
def test_what_evaluate_gives_is_checked(name, message):
    metric = task_of(f"{HERE}:task_{name}").metric
    assert metric is not None
    with pytest.raises(BoughError, match=message):
        metric(tasks.same_mlp()[0])


def test_the_contract_is_in_the_help():
    for command in ("finetune", "distill", "prune"):
        text = "".join(c for c in run(command, "--help") if c not in "│\n ")
        assert "evaluate(model,validation)orevaluate(model)" in text


class Largest:
    """A criterion of one's own, with an option."""

    def __init__(self, p=2.0):
        self.p = p

    def __call__(self, graph):
        return {name: -values for name, values in Magnitude(self.p)(graph).items()}


class ByLoss:
    """One that asks for the loss."""

    def __init__(self, loss):
        assert callable(loss)

    def __call__(self, graph):
        return {g.name: np.arange(g.size, dtype=float) for g in graph.groups}


def largest(graph, p=2.0):
    return Largest(p)(graph)


def allocate(form, columns, limits):
    calls.append("allocate")
    return Greedy()(form, columns, limits)


class Allocator:
    """An allocator with an option."""

    def __init__(self, relative=True):
        calls.append(f"relative={relative}")
        self.by = Greedy(relative=relative)

    def __call__(self, form, columns, limits):
        return self.by(form, columns, limits)


def recover(model, step):
    calls.append(f"step {step}, {sum(p.numel() for p in model.parameters())} parameters")


def recover_badly(model, step):
    raise RuntimeError("no data")


def pruned(*words):
    return json.loads(run("prune", SEEDED, "--budget", "params=60%", "--json", *words))


@pytest.mark.parametrize("text", ["Largest", "Largest(p=2)", "largest", "largest(p=2.0)", "ByLoss"])
def test_criteria_of_ones_own(text, tmp_path):
    pruned("--importance", f"{HERE}:{text}", "--out", str(tmp_path))
    criterion = ByLoss(print) if text == "ByLoss" else Largest()
    expected = bough.prune(*tasks.same_mlp(), bough.Budget(params="60%"), importance=criterion).model
    found = bough.load(tmp_path, lambda: tasks.same_mlp()[0])
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


def test_allocators_of_ones_own():
    calls.clear()
    assert pruned("--allocation", f"{HERE}:allocate")["groups"] == pruned("--allocation", "greedy")["groups"]
    pruned("--allocation", f"{HERE}:Allocator(relative=False)")
    assert calls == ["allocate", "relative=False"]


def test_recoveries_of_ones_own():
    calls.clear()
    data = pruned("--iterative", "2", "--recover", f"{HERE}:recover")
    assert [s.partition(",")[0] for s in calls] == ["step 0", "step 1"]
    assert calls[1].endswith(f" {data['after']['params']} parameters")
    with pytest.raises(ModelReferenceError, match="recover_badly raised RuntimeError: no data"):
        pruned("--recover", f"{HERE}:recover_badly")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--importance", f"{HERE}:Largest(q=2)"], "Largest.*unexpected keyword argument 'q'"),
        (["--importance", f"{HERE}:Largest(2)"], "options are numbers"),
        (["--importance", f"{HERE}:HERE"], "is a str: a class, a function or a callable is wanted"),
        (["--allocation", f"{HERE}:nothing"], "has no callable nothing"),
        (["--iterative", "2"], "needs --task module:callable.* or --recover"),
        (["--recover", f"{HERE}:recover", "--task", f"{HERE}:task_model"], "one of them"),
    ],
)
def test_references_that_do_not_fit(words, message):
    with pytest.raises(BoughError, match=message):
        pruned(*words)


def gives_a_number(model):
    return float(sum(p.numel() for p in model.parameters()))


def gives_for_dense_alone(model):
    if sum(p.numel() for p in model.parameters()) < 100:
        raise ValueError("the batch is empty")
    return 1.0


def compared(tmp_path, *words):
    words = ["compare", SEEDED, "--budgets", "params=60%", "--out", str(tmp_path / "out"), *words]
    return json.loads(run(*words, "--json").splitlines()[-1])


def test_compare_names_what_it_is_given_by_its_reference(tmp_path):
    mine = [f"{HERE}:Largest(p=1)", f"{HERE}:Largest(p=2)"]
    words = [word for text in (*mine, "l2") for word in ("--criteria", text)]
    words += ["--allocations", f"{HERE}:allocate", "--evaluate", f"{HERE}:gives_a_number", "--round-to", "neon"]
    rows = compared(tmp_path, *words)["rows"]
    assert [r["criterion"] for r in rows] == ["dense", *mine, "l2", "random"]
    assert {r["allocation"] for r in rows[1:]} == {f"{HERE}:allocate"}


def test_the_table_of_compare_names_budgets_as_they_are(tmp_path):
    words = ["compare", SEEDED, "--budgets", "params=60%", "--budgets", "params=1", "--out", str(tmp_path)]
    printed = run(*words, "--evaluate", f"{HERE}:gives_a_number")
    assert "--budgets" not in printed
    assert "params=60%" in printed
    assert "lower --minimum, --round-to or --ignore" in printed  # of the budget that can not be reached


def test_compare_fails_where_every_row_fails(tmp_path):
    with pytest.raises(ComparisonError, match=r"every row failed.*gives_for_dense_alone raised ValueError: the batch is empty"):
        compared(tmp_path, "--evaluate", f"{HERE}:gives_for_dense_alone")
    assert (tmp_path / "out" / "rows.jsonl").is_file()


def test_evaluate_of_compare_takes_a_model(tmp_path):
    with pytest.raises(ModelReferenceError, match=r"--evaluate .*of_both: evaluate\(model\) is wanted"):
        compared(tmp_path, "--evaluate", f"{HERE}:of_both")
    assert not (tmp_path / "out").exists()
