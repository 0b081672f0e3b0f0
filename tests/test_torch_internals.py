"""What torch's private parts do for bough, each in words: a test that fails says what a release of torch has changed."""

import sys
from threading import Thread

import torch
from torch import nn
from torch.nn import functional as F

from bough import torch_internals as internals


class Seen(internals.TorchDispatchMode):
    """Notes the names of the ops that it sees."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Called(torch.overrides.TorchFunctionMode):
    """Notes the functions of torch's Python API that are called."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_every_op_and_can_be_left_for_a_while():
    with Seen() as seen:
        torch.ones(2) + 1
        with internals.without_dispatch():
            torch.ones(2) * 2
    assert "add.Tensor" in seen.names, "dispatch modes no longer see the ops of their thread"
    assert "mul.Tensor" not in seen.names, "ops under without_dispatch reach dispatch modes"


def test_classes_of_ops():
    assert isinstance(torch.ops.aten.add.Tensor, internals.OpOverload), "overloads have another class"
    assert isinstance(torch.ops.aten.add.Tensor, internals.OperatorBase), "overloads have another base class"
    assert isinstance(torch.ops.higher_order.flex_attention, internals.HigherOrderOperator), (
        "higher-order ops have another class"
    )


def test_functions_that_stay_whole_are_those_that_torch_calls():
    behind = (torch.functional._VF.einsum, torch.nn.utils.rnn._VF._pad_packed_sequence)
    for used, kept in zip(behind, (internals.EINSUM, internals.PAD_PACKED_SEQUENCE), strict=True):
        assert used == kept, f"torch no longer calls {kept.__name__} by way of this function"
    with Called() as called:
        F.linear(torch.ones(1, 2), torch.ones(1, 2))
    assert F.linear in called.functions, "modes of functions no longer see linear as one"


def test_the_frame_of_a_module_call_knows_the_module():
    class Net(nn.Module):
        def forward(self, x):
            frame = sys._getframe()
            while frame is not None and frame.f_code is not internals.CALL_OF_A_MODULE:
                frame = frame.f_back
            self.found = frame is not None and frame.f_locals["self"]
            return x

    net = Net()
    net(torch.ones(1))
    assert net.found is net, "a module is called by another function, or names itself otherwise there"


def test_modes_of_a_thread_are_told():
    with Seen() as outer, Called() as function_mode:
        assert internals.modes_of_thread() == [function_mode, outer], "the stacks of modes are kept elsewhere"
        found = []
        thread = Thread(target=lambda: found.extend(internals.modes_of_thread()))
        thread.start()
        thread.join()
    assert found == [], "a new thread starts with the modes of another"


def test_names_of_what_is_not_imported():
    (module, name), attribute = internals.COMPILED_MODULE
    compiled = torch.compile(nn.Linear(2, 2), backend="eager")
    assert (type(compiled).__module__, type(compiled).__name__) == (module, name), "compiled modules have another class"
    assert isinstance(getattr(compiled, attribute), nn.Linear), "compiled modules hold the real one elsewhere"
    with torch._subclasses.FakeTensorMode():
        assert type(torch.ones(1)).__module__ == internals.FAKE_TENSORS, "fake tensors are in another module"
    assert callable(internals.FLATTEN_RECURRENT_WEIGHTS)


def test_inputs_in_the_order_of_an_exported_program():
    program = torch.export.export(nn.Linear(2, 1), (torch.ones(1, 2),), strict=False).module()
    flat = internals.tree_flatten_spec(((torch.zeros(1, 2),), {}), program._in_spec)
    assert [t.sum().item() for t in flat] == [0.0], "inputs of exported programs are described otherwise"


def test_the_scale_of_a_fake_quantization_has_a_gradient():
    scale = torch.tensor([0.1], requires_grad=True)
    internals.learned_fake_quantize(torch.randn(8), scale, torch.zeros(1), -128, 127, 1.0).sum().backward()
    assert scale.grad is not None, "learned fake quantization gives its scale no gradient"


def test_a_recompilation_beyond_the_limit_can_fail():
    with internals.fail_on_recompile_limit():
        assert torch._dynamo.config.fail_on_recompile_limit_hit, "the setting has another name"
    assert not internals.is_traceable_wrapper_subclass(torch.ones(1)), "plain tensors count as wrapped ones"
