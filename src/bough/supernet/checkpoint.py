"""The file of a supernet: weights, order of the units, and what is elastic; no pickle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bough.errors import CheckpointError, PlanError
from bough.planning.allocation import Allowed
from bough.recovery.training.model_state import full_state, load_full_state
from bough.storage import make_folder, read_state, write_state
from bough.supernet.ordering import scores_of
from bough.supernet.space import ElasticWidth, SubnetSpace
from bough.tracing import trace
from bough.tracing.capture.wrapped import traceable
from bough.tracing.fingerprint import fingerprint

if TYPE_CHECKING:
    from bough.supernet.supernet import Supernet

FILE, FORMAT, VERSION = "supernet.safetensors", "bough-supernet", 1

Parts = tuple[SubnetSpace, dict[str, str], Allowed, dict[str, NDArray[np.float64]]]


def save_supernet(net: Supernet, folder: Path, *, overwrite: bool) -> Path:
    """Write a supernet; see `Supernet.save`."""
    path = folder / FILE
    if path.exists() and not overwrite:
        raise CheckpointError(f"{folder} has a supernet already ({FILE}): save into another folder, or with overwrite=True")
    allowed, space = net.allowed, net.space
    make_folder(folder)
    write_state(path, {
        "format": FORMAT, "version": VERSION, "fingerprint": net.graph.fingerprint, "training": net.training,
        "tie": [[_place(a), _place(b)] for a, b in net.graph.tie],
        "round_to": allowed.round_to, "least": dict(allowed.least),
        "refused": {n: sorted(counts) for n, counts in allowed.refused.items()}, "frozen": net.frozen,
        "widths": [[list(w.groups), w.counts.tolist()] for w in space.widths], "depths": [list(d) for d in space.depths],
        "scores": {n: torch.from_numpy(np.array(s, dtype=np.float64)) for n, s in net.scores.items()},
        "model": full_state(net.model),
    })  # fmt: skip
    return path


def load_supernet(folder: Path, build_model: Callable[[], Any], example_inputs: Any) -> Parts:
    """Return the parts of a saved supernet; see `Supernet.load`."""
    state = read_saved(folder)
    made = build_model()
    built, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    inputs = inputs if example_inputs is None else example_inputs
    if not isinstance(built, nn.Module):
        raise CheckpointError(f"build_model returned a {type(built).__name__}: it must return a model, or (model, inputs)")
    if inputs is None:
        raise CheckpointError("Supernet.load needs example_inputs, or a build_model that returns (model, example inputs)")
    model = traceable(built)
    if fingerprint(model) != state["fingerprint"]:
        raise PlanError(f"the supernet in {folder} is of another model than this {type(model).__name__}")
    try:
        load_full_state(model, state["model"])
    except RuntimeError as error:
        raise CheckpointError(f"the supernet in {folder} does not fit: {str(error).splitlines()[0]}") from None
    model.train(state["training"])
    tie: Any = {_key(a): _key(b) for a, b in state["tie"]}
    graph = trace(model, inputs, tie=tie or None)
    widths = tuple(ElasticWidth(tuple(names), np.array(counts, dtype=np.int64)) for names, counts in state["widths"])
    missing = {n for w in widths for n in w.groups} - {g.name for g in graph.groups}
    if missing:
        raise PlanError(f"the supernet in {folder} was traced on other inputs: {min(missing)} is no group here")
    space = SubnetSpace(graph, widths, tuple(tuple(names) for names in state["depths"]))
    scores = scores_of(graph, {name: values.numpy() for name, values in state["scores"].items()})
    refused = {name: frozenset(counts) for name, counts in state["refused"].items()}
    return space, dict(state["frozen"]), Allowed(int(state["round_to"]), dict(state["least"]), refused=refused), scores


def read_saved(folder: Path) -> dict[str, Any]:
    """Return the content of a supernet's file.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no supernet ({FILE}); Supernet.save writes one")
    state = read_state(path)
    if state.get("format") != FORMAT or state.get("version") != VERSION:
        raise CheckpointError(f"{path} is not a supernet of version {VERSION}")
    return state


def _place(place: Any) -> Any:
    return list(place) if isinstance(place, tuple) else place


def _key(place: Any) -> Any:
    return tuple(place) if isinstance(place, list) else place
