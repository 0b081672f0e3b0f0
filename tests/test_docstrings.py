"""The examples in docstrings run, of every module of the package."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import bough
from tests.zoo.shim import declare_torchvision_ops

declare_torchvision_ops()  # which transformers imports
EXTRAS = (
    "optuna",
    "torchao",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "executorch",
    "transformers",
)  # without which some modules can not be imported
NEEDED = {  # by their examples
    "bough.exporting.export": "onnxscript",
    "bough.searching.search": "optuna",
    "bough.quantization.quantize": "torchao",
    "bough.quantization.quantized": "torchao",
    "bough.quantization.linear": "torchao",
    "bough.exporting.pretrained": "transformers",
}


def _importable(name: str) -> bool:
    try:
        importlib.import_module(NEEDED.get(name, name))
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in EXTRAS:
            return False
        raise
    return True


MODULES = [
    m.name for m in pkgutil.walk_packages(bough.__path__, "bough.") if not m.name.endswith("__main__") and _importable(m.name)
]


def _examples(name: str) -> list[doctest.DocTest]:
    return [t for t in doctest.DocTestFinder().find(importlib.import_module(name)) if t.examples]


@pytest.mark.parametrize("name", [name for name in MODULES if _examples(name)])
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_examples(name):
    torch.manual_seed(0)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_packages_have_a_docstring_that_says_what_they_hold():
    assert [name for name in MODULES if not importlib.import_module(name).__doc__] == []
