"""Tiny models of transformers' families with random weights: name -> () -> (model, keyword arguments)."""

from tests.zoo import transformers_text, transformers_vision
from tests.zoo.transformers_text import Builder

ZOO: dict[str, Builder] = {**transformers_text.ZOO, **transformers_vision.ZOO}
