"""Runs on threads of their own see what torch keeps for the thread that starts them."""

import contextlib
import doctest
from contextvars import ContextVar
from threading import Thread

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import bough
from bough.calibration import in_state_of_caller, thread_state

OWN = ContextVar("OWN", default="unset")
X = torch.randn(128, 6, generator=torch.Generator().manual_seed(1))


class Counting(TorchFunctionMode):
    """Counts the functions of torch that are called."""

    calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        Counting.calls += 1
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def own_variable():
    token = OWN.set("set")
    yield
    OWN.reset(token)


STATES = {
    "plain": contextlib.nullcontext,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast in half": lambda: torch.autocast("cpu", torch.float16),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "device": lambda: torch.device("meta"),
    "mode": Counting,
    "context variable": own_variable,
}


def state():
    before = Counting.calls
    device = str(torch.empty(0).device)
    return (
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"), str(torch.get_default_device()), device, Counting.calls > before, OWN.get(),
    )  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_thread_is_in_the_state_of_its_caller(name):
    seen = []
    with STATES[name]():
        thread = Thread(target=in_state_of_caller(lambda: seen.append(state())))
        thread.start()
        thread.join()
        assert seen == [state()]
    assert state() == state()
    assert len({state(), *seen}) == (1 if name == "plain" else 2)  # each of them can be told from plain


def start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    result = bough.prune(model, X[:2], bough.Budget(params="50%"))
    seen = []
    for module in (model[0], result.model[0]):
        module.register_forward_pre_hook(lambda module, args: seen.append(state()))
    return model, result, seen


@pytest.mark.parametrize("name", [n for n in STATES if n != "device"])
def test_refit_runs_in_the_state_of_its_caller(name):
    model, result, seen = start()
    with STATES[name](), torch.no_grad():
        bough.refit(model, result.model, result.plan, X.split(32))
        gradients, _, *others = state()
    assert len(seen) > 4  # the batches of both models
    assert set(seen) == {(gradients, False, *others)}  # in inference mode torch would hide what composite ops are made of


def test_refit_under_autocast_fits_what_autocast_computes():
    """The error before is that of the cut weights on what autocast gives them, for what autocast gives in the dense model."""
    model, result, _ = start()

    def error():
        with torch.no_grad():
            wanted, read, last = model(X).double(), result.model[:2](X).double(), result.model[2]
            given = read @ last.weight.double().T + last.bias.double()
        return float((wanted - given).square().sum() / (wanted - wanted.mean(0)).square().sum())

    found = {}
    for name in ("plain", "autocast"):
        with STATES[name]():
            (layer,) = bough.refit(model, result.model, result.plan, X.split(32)).layers
            assert layer.before == pytest.approx(error(), rel=1e-6)
            found[name] = layer.before
    assert found["plain"] != found["autocast"]


def test_docstrings():
    assert doctest.testmod(thread_state).failed == 0
