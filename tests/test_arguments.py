"""Every public function, each of its arguments, wrong values: one clear sentence that names the argument, or a good reason."""

import copy
import functools
import inspect
import math
import tempfile

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import bough
from bough import allocation, importance, recovery, sparsity
from bough.latency import required_points
from bough.measuring import latency
from tests.recovery.test_reconstruct import build as residual
from tests.zoo.routers import mixture
from tests.zoo.shim import declare_torchvision_ops

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
X = torch.randn(16, 4)
DATA = TensorDataset(X, (X[:, 0] > 0).long())
BATCHES = [(x, (x[:, 0] > 0).long()) for x in X.split(8)]
GRAPH = bough.trace(MODEL, X)
SCORES = bough.score(GRAPH, importance.Magnitude())
BUDGET = bough.Budget(params="60%")
PLAN = bough.plan(GRAPH, SCORES, BUDGET)
SMALL = bough.cut(MODEL, PLAN)
POINTS = {
    key: {widths: 1e-6 * sum(widths) for k, widths in required_points(GRAPH) if k == key} for key, _ in required_points(GRAPH)
}
TABLE = bough.LatencyTable("a chip", "eager", 8, 0.0, 0.0, POINTS)
MASKS = {"0.weight": torch.ones(8, 4, dtype=torch.bool)}
ZEROS = torch.zeros(8, 4, dtype=torch.bool)
OUTCOME = bough.prune(MODEL, X, BUDGET)
RESIDUAL, IMAGES = residual()
RESIDUAL_GRAPH = bough.trace(RESIDUAL, IMAGES)
RESIDUAL_PLAN = bough.plan(RESIDUAL_GRAPH, bough.score(RESIDUAL_GRAPH, "l2"), BUDGET)
RESIDUAL_SMALL = bough.cut(RESIDUAL, RESIDUAL_PLAN)
MIXTURE, TOKENS = mixture("loop_over_stack")
MIXTURE_GRAPH = bough.trace(MIXTURE, TOKENS)
MIXTURE_PLAN = bough.plan(MIXTURE_GRAPH, bough.score(MIXTURE_GRAPH, "l2"), keep={"up/expert": 3})


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def new():
    """A model to change."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def small():
    return bough.cut(MODEL, PLAN)


def error(model):
    return float((model(X) - MODEL(X)).square().mean().detach())


def timed(model):
    return 1e-6 * sum(p.numel() for p in model.parameters())


@functools.cache
def llama():
    """A model of transformers in a folder, and what `prune` makes of it: (folder, result)."""
    declare_torchvision_ops()
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=20
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder := tempfile.mkdtemp())
    return folder, bough.prune(model, {"input_ids": torch.zeros(1, 4, dtype=torch.long)}, BUDGET, uniform=True)


class Wrong:
    """Of no use to anyone."""

    def __repr__(self):
        return "<Wrong>"


def call(function, **arguments):
    """A function, and arguments that it takes; what it may change is given as a function that makes it."""
    return function, arguments


WRONG = {"None": None, "string": "text", "number": 3, "object": Wrong(), "class": Wrong, "list": [], "nan": math.nan}

CALLS = dict([
    call(bough.Call, method="forward"),
    call(bough.trace, model=new, example_inputs=lambda: X, ignore=(), only=None, tie=None, real=False),
    call(bough.score, graph=GRAPH, criterion="wanda", data=BATCHES),
    call(bough.synthesize, graph=GRAPH, samples=2, batch_size=2, steps=1, seed=0, progress=False),
    call(bough.plan, graph=GRAPH, scores=SCORES, budget=BUDGET, keep=None, allocation="greedy", round_to=1, minimum=1,
         drop=(), ignore=(), only=None, exact_only=False, uniform=False, ragged=False, on_conflict="freeze", table=None,
         energy=None),
    call(bough.prune, model=new, example_inputs=lambda: X, budget=BUDGET, importance="l2", data=None, refit=False,
         merge_experts=False, ignore=(), only=None, tie=None, allocation="greedy", round_to=1, minimum=1, drop=(),
         exact_only=False, uniform=False, ragged=False, on_conflict="freeze", table=None, energy=None, on_mismatch="raise"),
    call(bough.cut, model=MODEL, plan=PLAN),
    call(bough.cut_, model=lambda: copy.deepcopy(MODEL), plan=PLAN),
    call(bough.mask, model=MODEL, plan=PLAN),
    call(bough.rebuild, model=MODEL, plan=PLAN, example_inputs=lambda: (X,)),
    call(bough.verify, model=MODEL, small=SMALL, plan=PLAN, example_inputs=lambda: X, dtype=torch.float64),
    call(bough.transfer_optimizer, optimizer=lambda: torch.optim.SGD(MODEL.parameters(), 0.1), plan=PLAN),
    call(bough.contrast, model=MODEL, example_inputs=lambda: X, evaluate=error, keeps=[0.5], data=None, recover=None,
         train=None, training=None, loss=None, seeds=[0], kernels=["csr"],
         methods=None, pattern="2:4", round_to=1, tolerance=1.0, lower_is_better=True, ignore=(), repeats=1, clock="wall",
         folder=None, progress=False),
    call(bough.predictability, model=MODEL, example_inputs=lambda: X, backend="eager", clock="wall", points=3, least=0.25,
         round_to=1, repeats=1, ignore=(), seed=0, progress=False),
    call(bough.compare, model=MODEL, example_inputs=lambda: X, criteria=["l2"], budgets=[BUDGET], evaluate=error,
         allocations=["global"], seeds=[0], data=None, loss=None, refit=False, ignore=(), only=None, tie=None, folder=None,
         about=None, lower_is_better=False, progress=False),
    call(bough.search, model=MODEL, example_inputs=lambda: X, evaluate=error, budget=BUDGET, objectives=None, at_least=None,
         at_most=None, noise=None, trials=1, method="random", screen=None, measure=None, population=2, start=(), layers=(),
         importance="l2", data=None, refit=False, recalibrate=False, make=None, ignore=(), only=None, tie=None,
         storage=None, name="search", heartbeat=1, about=None, seed=0, progress=False),
    call(bough.perplexity, model=lambda: nn.Embedding(7, 7), tokens=[1, 2, 3], window=2, stride=None, batch_size=1),
    call(bough.sensitivity, graph=GRAPH, scores=SCORES, evaluate=error, widths=[0.5]),
    call(bough.correct_table, graph=GRAPH, table=TABLE, measure=lambda model: 1.0, plans=1, seed=0, round_to=1),
    call(bough.meet_latency, graph=GRAPH, scores=SCORES, budget=bough.Budget(latency="50%"), table=TABLE, measure=timed,
         tolerance=0.05, rounds=1),
    call(bough.meet_arena, graph=lambda: bough.trace(MODEL, X[:1]), scores=SCORES,
         budget=bough.Budget(peak_memory="100%", precision="int8"), tolerance=0.5, rounds=1),
    call(bough.refit, model=MODEL, small=SMALL, plan=PLAN, data=BATCHES),
    call(recovery.refit_, model=MODEL, small=small, plan=PLAN, data=BATCHES, ridge=1e-2, sites=8, everything=True, skips=True,
         biases_only=False, example_inputs=None, memory=2**20),
    call(bough.sparsify, model=new, example_inputs=lambda: X, sparsity=0.5, pattern=None, method="magnitude", allocation=None,
         data=None, loss=None, ignore=(), only=None, permute=False, damping=0.01, sites=8),
    call(sparsity.attach_masks_, model=new, masks=MASKS),
    call(sparsity.attached_masks, model=MODEL),
    call(sparsity.detach_masks_, model=new),
    call(sparsity.follows_pattern, tensor=torch.ones(2, 4), pattern="2:4", dim=1),
    call(sparsity.save_sparse, model=new, path=lambda: f"{tempfile.mkdtemp()}/file", format="csr", compress=False),
    call(sparsity.load_sparse, path="nowhere"),
    call(sparsity.file_sizes, model=MODEL),
    call(sparsity.use_sparse_kernels, model=lambda: recovery.apply_masks_(new(), {"0.weight": ZEROS}), layout="csr"),
    call(sparsity.GradualPruning, graph=GRAPH, sparsity=0.5, steps=4, updates=2, method="magnitude", allocation="global",
         schedule=recovery.cubic, ignore=(), only=None),
    call(recovery.LoRA, rank=2, alpha=1.0, dropout=0.0, targets=None),
    call(bough.recalibrate, small=small, data=BATCHES),
    call(bough.finetune, model=new, train=DATA, training=None, loss=None, forward=None, evaluate=None, optimizer=None,
         regularizers=(), callback=None, accelerator=None, quantization=None, lora=None),
    call(bough.distill, small=small, model=MODEL, train=DATA, training=None, distillation=None, loss=None, forward=None,
         evaluate=None, optimizer=None, regularizers=(), callback=None, accelerator=None, quantization=None, lora=None),
    call(bough.Pipeline, build_model=lambda: new, stages=[bough.pipeline.Prune(BUDGET, refit=False)], example_inputs=lambda: X,
         train=None, data=None, loss=None, forward=None, evaluate=None, seed=0),
    call(bough.iterate, model=MODEL, example_inputs=lambda: X, budget=BUDGET, recover=lambda model, step: None, steps=1,
         schedule=recovery.geometric, importance="l2", data=None, planning=bough.plan, ignore=(), only=None, tie=None,
         optimizer=None, on_mismatch="raise"),
    call(bough.supernet, model=new, example_inputs=lambda: X, importance="group", data=None, ignore=(), only=None, tie=None,
         round_to=1, minimum=0.25, depth=False),
    call(bough.Subnet, counts={"0": 4}, dropped=()),
    call(bough.Sandwich, random=1, distillation=recovery.Distillation(logits=1.0), shrinking=0.0),
    call(recovery.distillation_loss, student=X, teacher=X, temperature=1.0, dim=-1),
    call(recovery.merge, graph=GRAPH, plan=PLAN),
    call(recovery.reconstruct, model=RESIDUAL, small=RESIDUAL_SMALL, plan=RESIDUAL_PLAN, data=[IMAGES], epochs=1, rate=0.01,
         example_inputs=IMAGES, progress=False),
    call(recovery.merge_experts, graph=MIXTURE_GRAPH, plan=MIXTURE_PLAN, data=[TOKENS]),
    call(recovery.masks_of, model=MODEL, plan=PLAN),
    call(recovery.kept_share, masks=MASKS),
    call(recovery.apply_masks_, model=new, masks=MASKS),
    call(recovery.Sparse, model=new, masks=MASKS),
    call(recovery.geometric, target=0.5, steps=2),
    call(recovery.linear, target=0.5, steps=2),
    call(recovery.cubic, target=0.5, steps=2),
    call(recovery.budgets, budget=BUDGET, original=GRAPH.cost(), steps=2, schedule=recovery.linear),
    call(recovery.magnitude_masks, model=MODEL, keep=0.5, scope="global", names=None, within=None),
    call(recovery.random_masks, masks=MASKS, seed=0),
    call(recovery.random_plan, graph=GRAPH, plan=PLAN, seed=0),
    call(recovery.snapshot, model=MODEL),
    call(recovery.rewind_, model=new, state=lambda: new().state_dict(), masks=MASKS),
    call(recovery.find_tickets, model=new, train=lambda model, sparse: None, keep=0.5, rounds=1, schedule=recovery.linear,
         rewind_to=None, graph=None, importance=None, control=True, seed=0),
    call(recovery.zeros, graph=GRAPH),
    call(recovery.Features, graph=GRAPH, names=["1"], plan=PLAN, student=None),
    call(recovery.Distillation, temperature=2.0, logits=0.5, features=1.0, match=None, dim=None),
    call(recovery.regularize.GroupLasso, graph=GRAPH, strength=1.0, groups=None),
    call(recovery.regularize.SparseLearning, graph=GRAPH, strength=1.0, alpha=4.0, every=2, groups=None),
    call(recovery.regularize.GrowingPenalty, graph=GRAPH, growth=1.0, every=2, ceiling=1.0, groups=None),
    call(recovery.regularize.Slimming, graph=GRAPH, strength=1.0),
    call(recovery.regularize.ProgressiveZeroing, graph=GRAPH, budget=BUDGET, steps=2, periods=2, importance=None,
         schedule=recovery.linear),
    call(bough.Budget, params=None, macs=None, size="50%", peak_memory=None, latency=None, energy=None, precision=None,
         flash=None),
    call(bough.Training, epochs=1, lr=0.1, optimizer="sgd", weight_decay=0.0, momentum=0.0, schedule="cosine", warmup=0.0,
         batch_size=8, accumulate=1, clip=None, precision="no", start="", seed=0, better="max", patience=None, folder=None,
         save_every=None, log_every=1, progress=False),
    call(bough.EnergyModel, mac=1.0, weight_byte=1.0, activation_byte=1.0, weight_bytes=1.0, activation_bytes=1.0, source="",
         scale=1.0),
    call(bough.EnergyModel.of, name="int8"),
    call(bough.LatencyTable, device="", backend="", quantum=1, op_seconds=0.0, byte_seconds=0.0, points={}, scale=1.0,
         factors={}, op_overhead=0.0),
    call(bough.LatencyTable.from_json, text=TABLE.to_json()),
    call(bough.LatencyTable.load, path="nowhere"),
    call(bough.Plan.from_json, text=PLAN.to_json()),
    call(bough.LatencyTable.measure, source=GRAPH, backend="eager", device=None, quantum=8, seconds=1e-3, onto=None, path=None,
         progress=False),
    call(latency, model=MODEL, example_inputs=lambda: X, repeats=1, warmup=0, backend="eager"),
    call(bough.prune_checkpoint, source=lambda: llama()[0], budget=BUDGET, out=lambda: f"{tempfile.mkdtemp()}/out",
         importance="l2", data=None, refit=False, allocation="global", round_to=1, minimum=1, drop=(), ignore=(), only=None,
         exact_only=False, overwrite=False, progress=False),
    call(bough.save_pretrained, result=lambda: llama()[1].model, plan=lambda: llama()[1].plan,
         folder=lambda: f"{tempfile.mkdtemp()}/out", source=None, overwrite=False),
    call(importance.criterion, name="taylor", loss=loss),
    call(importance.Data, batches=BATCHES, forward=None, progress=False, checkpoint=None, every=1, distributed=False),
    call(importance.Combined, parts=["l1"], normalize="mean"),
    call(importance.Magnitude, p=2.0),
    call(importance.GroupNorm, p=2.0),
    call(importance.Wanda, p=2.0),
    call(importance.NormScale, otherwise=None),
    call(importance.Random, seed=0),
    call(importance.FLAP, standardize=False),
    call(importance.Taylor, loss=loss, form="group"),
    call(importance.GateTaylor, loss=loss, signed=False),
    call(importance.OBD, loss=loss),
    call(importance.Fisher, loss=loss),
    call(importance.Sensitivity, loss=loss),
    call(importance.MaskedLoss, loss=loss, signed=True),
    call(importance.Shapley, loss=loss, permutations=1, seed=0),
    call(importance.LayerLoss, loss=loss),
    call(importance.OBS, ridge=0.1, sites=8, step=1, relative=False, probes=0),
    call(importance.ThiNet, sites=8, step=1, relative=False, probes=0),
    call(allocation.Global, relative=True),
    call(allocation.Isomorphic, relative=True),
    call(allocation.Greedy, relative=True, rounds=1),
    call(allocation.Knapsack, relative=True, rounds=1, bins=10),
    call(allocation.Milp, relative=True, widths=2, rounds=1, seconds=1.0),
    call(allocation.LeastError, by=allocation.Greedy()),
    call(allocation.Sensitivity, curves={"0": [(8, 0.0)]}, by=allocation.Greedy()),
    call(allocation.allocator, given="greedy"),
])  # fmt: skip

CASES = [(function, name) for function, arguments in CALLS.items() for name in arguments]


def outcome(function, name, value):
    """What comes of the call with `value` in place of the argument `name`: its error, or None."""
    arguments = {}
    for n, v in CALLS[function].items():
        made = inspect.isfunction(v) and not inspect.signature(v).parameters
        arguments[n] = value if n == name else v() if made else v
    if function is bough.plan and name == "keep":
        arguments.pop("budget")
    try:
        function(**arguments)
    except Exception as raised:
        return raised
    return None


ACCEPTED = {  # what makes sense, or is not looked at until it is used
    "None": "about accelerator allocation at_least at_most budget callback checkpoint clip data device dim distillation "
    "dtype energy evaluate example_inputs flash folder forward graph groups importance kernels latency loss lora macs "
    "make measure match methods names noise objectives only onto optimizer otherwise params path patience pattern peak_memory "
    "precision quantization recover refit rewind_to ridge round_to save_every screen source start storage stride student "
    "table targets tie train training within",
    "string": "backend checkpoint device folder importance method name out path source start storage",
    "class": "method build_model",
    "number": "accumulate activation_byte activation_bytes alpha batch_size bins byte_seconds ceiling clip damping dim "
    "dropout energy epochs every features flash growth heartbeat latency log_every lr mac macs memory minimum "
    "op_overhead op_seconds p params patience peak_memory periods permutations plans population probes quantum random "
    "points rank repeats ridge round_to rounds samples save_every scale seconds seed sites size step steps strength "
    "stride temperature tolerance trials updates warmup weight_byte weight_bytes weight_decay widths window",
    "list": "batches data depth drop dropped ignore kernels layers regularizers source start targets tokens",
}


@pytest.mark.parametrize(("function", "name"), CASES, ids=[f"{f.__qualname__}-{n}" for f, n in CASES])
def test_wrong_values(function, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, value in WRONG.items():
        if (function, name, kind) == (bough.meet_latency, "measure", "None"):
            continue  # it would measure
        raised = outcome(function, name, value)
        if raised is None:
            assert name in ACCEPTED.get(kind, "").split(), f"{name}={value!r} is accepted"
            continue
        text = str(raised)
        assert isinstance(raised, (bough.BoughError, TypeError)), repr(raised)
        assert "\n" not in text
        assert name in text or name.replace("_", " ") in text or (kind == "string" and (value in text or "damaged" in text)), (
            text
        )


def test_right_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    for function, arguments in CALLS.items():
        name, value = next(iter(arguments.items()))
        made = value() if inspect.isfunction(value) and not inspect.signature(value).parameters else value
        raised = outcome(function, name, made)
        assert raised is None or function in (bough.LatencyTable.load, sparsity.load_sparse, recovery.zeros), (
            f"{function.__qualname__}: {raised}"
        )


MADE = {  # by bough, or protocols and tables
    "BoughError",
    "Comparison",
    "Contrast",
    "Predictability",
    "Cost",
    "Exported",
    "Frozen",
    "Graph",
    "Group",
    "Layer",
    "Member",
    "PipelineResult",
    "Plan",
    "Quantized",
    "Result",
    "SearchResult",
    "SubnetTable",
    "Supernet",
    "StreamedResult",
    "Verification",
    "Merged",
    "Iterated",
    "MergedExperts",
    "Reconstructed",
    "ReconstructedBlock",
    "Refit",
    "Step",
    "Ticket",
    "Trained",
    "Criterion",
    "DataCriterion",
    "Loss",
    "Regularizer",
    "Attachment",
    "Allocation",
    "Allocator",
    "Sums",
    "Allowed",
    "Sparsified",
    "SparseLayer",
    "SparseKernels",
    "Column",
}
INNER = {"columns", "form_of", "unit_scores", "per_unit", "elementwise"}  # for allocators and criteria of one's own
TESTED_IN_OTHER_FILES = {
    "save",
    "zero_shot",
    "load",
    "export",
    "quantize",
}  # in tests of their own; and dynamic_shapes are torch.export's own


def test_every_public_function_is_in_the_table():
    modules = (bough, importance, recovery, recovery.regularize, allocation, sparsity)
    public = {n: getattr(m, n) for m in modules for n in m.__all__ if n not in MADE | INNER | TESTED_IN_OTHER_FILES}
    taking = {n for n, x in public.items() if callable(x) and inspect.signature(x).parameters}
    assert taking <= {f.__name__ for f in CALLS}
    for function, arguments in CALLS.items():
        parameters = inspect.signature(function).parameters.values()
        asked = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        assert asked - {"dynamic_shapes"} == arguments.keys(), function


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: bough.prune(MODEL, X, "50%"), r"budget must be a Budget, such as budget=bough\.Budget\(macs='50%'\)$"),
        (lambda: bough.prune(MODEL, X, 0.5), r"budget=bough\.Budget\(macs='50%'\)$"),
        (lambda: bough.prune(MODEL, X, None), r"prune\(budget=None\).*bough\.Budget"),
        (lambda: bough.prune(MODEL, X, BUDGET, importance=importance.Taylor), "Taylor is a class: make an instance of it"),
        (lambda: bough.plan(GRAPH, SCORES, "50%"), r"plan\(budget='50%'\).*bough\.Budget"),
        (lambda: bough.plan(GRAPH, None, BUDGET), r"scores=bough\.score\(graph, 'l2'\)"),
        (lambda: bough.compare(MODEL, X, ["l2"], ["macs=50%"], error), r"budgets=\[bough\.Budget\(macs='50%'\)\]"),
        (lambda: bough.LatencyTable.measure(GRAPH, seconds=-1), "seconds=-1"),
        (lambda: bough.verify(MODEL, SMALL, PLAN, X, dtype="float64"), r"dtype=torch\.float64"),
        (lambda: bough.score("graph", "l2"), r"graph=bough\.trace\(model, example_inputs\)"),
        (lambda: bough.finetune(new(), DATA, loss=nn.CrossEntropyLoss), "CrossEntropyLoss is a class"),
        (lambda: bough.Training(lr=None), r"lr must be a number"),
    ],
)
def test_the_right_call_is_shown(wrong, said):
    with pytest.raises((bough.BoughError, TypeError), match=said):
        wrong()
