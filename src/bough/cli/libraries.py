"""Models of timm, torchvision and transformers by name, with pretrained weights where they can be had."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bough.cli.references import imported
from bough.cli.weights import PRETRAINED, RANDOM, Weights, impatient
from bough.errors import BoughError, ModelReferenceError, cause
from bough.streaming.architecture import example_inputs

Built = tuple[nn.Module, Any, Weights]
"""A model, example inputs, and where its weights are from."""

_HUB = "https://huggingface.co"
_HINT = (
    ": torchvision, which timm imports too, has to be installed as a build for the very torch that is installed "
    f"({torch.__version__}); the README says how under 'timm and torchvision'"
)


@contextmanager
def building(reference: str) -> Iterator[None]:
    """Report in one line what a library raises, parts of which are imported only here."""
    try:
        yield
    except BoughError:
        raise
    except Exception as error:
        why = cause(error)
        raise ModelReferenceError(
            f"{reference} can not be built ({why}){_HINT if 'torchvision' in why else '; --debug shows the traceback'}"
        ) from error


def timm(name: str, weights: str | None) -> Built:
    """`weights`: "random", "pretrained", or None for pretrained ones where they can be had."""
    library = imported("timm", f"timm:{name}", _HINT)
    if not library.is_model(name):
        raise ModelReferenceError(f"timm has no model called {name}")
    there = library.is_model_pretrained(name)
    url = os.environ.get("HF_ENDPOINT", _HUB)
    model, source = _weighted(
        f"timm:{name}", weights, lambda: library.create_model(name), lambda: library.create_model(name, pretrained=True),
        url if there else None,
    )  # fmt: skip
    return model, torch.randn(1, *library.data.resolve_model_data_config(model)["input_size"]), source


def torchvision(name: str, weights: str | None) -> Built:
    """`weights`: as for `timm`."""
    models = imported("torchvision.models", f"torchvision:{name}", _HINT)
    if name not in models.list_models():
        raise ModelReferenceError(f"torchvision has no model called {name}")
    best = next(iter(models.get_model_weights(name)), None) and models.get_model_weights(name).DEFAULT
    backbone = "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters
    plain = {"weights": None, **({"weights_backbone": None} if backbone else {})}
    model, source = _weighted(
        f"torchvision:{name}", weights, lambda: models.get_model(name, **plain), lambda: models.get_model(name, weights=best),
        best.url if best else None, stored=_in_cache(best.url) if best else False,
    )  # fmt: skip
    side = 299 if name.startswith("inception") else 224
    return model, torch.randn(1, 3, side, side), source


def hugging_face(path: str, weights: str | None) -> Built:
    """A folder with config.json, and weights or not. `weights`: as for `timm`."""
    transformers = imported("transformers", f"hf:{path}")
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise ModelReferenceError(f"hf:{path}: there is no config.json in that folder")
    with building(f"hf:{path}"):
        return _from_folder(transformers, path, weights)


def _from_folder(transformers: Any, path: str, weights: str | None) -> Built:
    config = transformers.AutoConfig.from_pretrained(path)
    architecture = getattr(transformers, config.architectures[0], None) if config.architectures else None
    there = any(f.endswith((".safetensors", ".bin")) for f in os.listdir(path))
    if weights == PRETRAINED and not there:
        raise ModelReferenceError(f"--weights pretrained: the folder {path} has a config and no weights")
    if there and weights != RANDOM:
        loader = (architecture or transformers.AutoModel).from_pretrained
        model, loading_info = _seeded(lambda: loader(path, output_loading_info=True))
        lacking = sorted(loading_info["missing_keys"])
        source = Weights("pretrained", f"from {path}")
        if lacking:
            source = Weights("random", f"in part: {path} has none for {', '.join(lacking[:3])}{' ...' if lacking[3:] else ''}")
    else:
        model = _seeded(lambda: architecture(config) if architecture else transformers.AutoModel.from_config(config))
        source = Weights("random", "as asked for" if there else f"the folder {path} has a config and no weights")
    return model, example_inputs(model), source


def _weighted(
    reference: str, weights: str | None, plain: Callable[[], nn.Module], trained: Callable[[], nn.Module], url: str | None,
    *, stored: bool = False,
) -> tuple[nn.Module, Weights]:  # fmt: skip
    """A model with pretrained weights, from the cache or the network; else with random ones, and why."""
    if weights == RANDOM:
        with building(reference):
            return _seeded(plain), Weights("random", "as asked for")
    why = f"there are no pretrained ones of {reference}"
    if url is not None:
        with impatient(url) as reached:
            hub = url == os.environ.get("HF_ENDPOINT", _HUB)  # which looks into its cache by itself
            why = f"the pretrained ones can not be fetched: {url} does not answer"
            if reached or stored or hub:
                try:
                    return trained(), Weights("pretrained", f"pretrained, of {reference}")
                except Exception as error:
                    if reached:
                        why = f"the pretrained ones can not be fetched: {cause(error)}"
    if weights == PRETRAINED:
        raise ModelReferenceError(f"--weights pretrained: {why}")
    with building(reference):
        return _seeded(plain), Weights("random", f"{why}; give --weights FILE for trained ones")


def _seeded(build: Callable[[], Any]) -> Any:
    """Build under a fixed seed, so that every command that names the model sees the same random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def _in_cache(url: str) -> bool:
    return (Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]).is_file()
