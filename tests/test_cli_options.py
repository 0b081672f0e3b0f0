"""The command line and the API: the same options, the same defaults, messages in the terms of each."""

import inspect
import subprocess
import sys

import pytest

import bough
from bough.cli import commands, main, supernet
from bough.cli.commands import EXAMPLES, options_of
from bough.cli.flags import flag, in_flags
from bough.quantization import QAT
from bough.recovery import Distillation, LoRA, Training, reconstruct, refit_
from tests.test_cli import MODEL, run
from tests.zoo.tasks import same_mlp

INPUTS = "MODEL gives them, or --input-shape"
TASK = "TASK returns it"
CHECKPOINT = "--checkpoint holds it"
LORA = {name: f"lora_{name}" for name in inspect.signature(LoRA).parameters}
PLANNING = {"graph": "made from MODEL", "scores": "made by --importance", "keep": "as bough.prune: a budget says what remains"}
TRAINING = {
    "progress": "shown unless --json", "start": "made from the checkpoint's weights and plan",
    "model": "MODEL, cut by --checkpoint", "train": TASK, "loss": TASK, "evaluate": TASK,
    "training": "its fields are options", "regularizers": "objects of the running model: use the API",
    "callback": "a function of the running program: use the API", "accelerator": "accelerate launch -m bough sets it",
    "quantization": "--qat; its fields are options",
}  # fmt: skip

ENERGY = "a model of energy: use the API"
FIT = {
    "self": "made by the options of bough.supernet", "sandwich": "its fields are options",
    **{name: TRAINING[name] for name in ("train", "training", "loss", "evaluate", "callback", "accelerator")},
}  # fmt: skip
SUPERNET = {"example_inputs": INPUTS, "data": "of criteria on data: use the API"}

# {command: {function: ({its argument: the option of another name}, {its argument: why there is no option})}}
APIS = {
    "prune": {
        bough.prune: ({}, {"example_inputs": INPUTS}),
        bough.plan: ({}, PLANNING),
        bough.prune_checkpoint: ({}, {"source": "MODEL names it", "progress": "shown unless --json"}),
        bough.iterate: (
            {"steps": "iterative"},
            {"example_inputs": INPUTS, "planning": "its arguments are options", "optimizer": "made for --task"},
        ),
    },
    "compare": {
        bough.compare: (
            {"folder": "out"},
            {"example_inputs": INPUTS, "planning": "its arguments are options", "progress": "shown unless --json"},
        ),
        bough.plan: ({"allocation": "allocations", "budget": "budgets"}, PLANNING),
    },
    "search": {
        bough.search: (
            {},
            {
                "example_inputs": INPUTS, "planning": "its arguments are options", "progress": "shown unless --json",
                "make": "an object of the running program: use the API",
            },
        ),
        bough.plan: (
            {},
            {
                **PLANNING, "allocation": "the plans of several come first: --start",
                "uniform": "widths that a config can tell are not searched", "on_conflict": "such candidates fail",
            },
        ),
    },
    "contrast": {
        bough.contrast: (
            {"folder": "out"},
            {
                "example_inputs": INPUTS, "progress": "shown unless --json", "loss": "--train returns it",
                "training": "its fields are options: --epochs, --lr, --batch-size",
            },
        )
    },
    "sparsify": {
        bough.sparsify: ({}, {"example_inputs": INPUTS}),
        bough.save: ({"folder": "out"}, {"plan": CHECKPOINT}),
    },
    "predictability": {
        bough.predictability: ({}, {"example_inputs": INPUTS, "progress": "shown unless --json"})
    },
    "inspect": {
        bough.trace: ({}, {"example_inputs": INPUTS, "real": "used where shapes do not carry the run"})
    },
    "refit": {
        refit_: ({}, {"example_inputs": INPUTS, "small": CHECKPOINT, "plan": CHECKPOINT}),
        reconstruct: (
            {"epochs": "reconstruct", "rate": "reconstruct_rate"},
            {"example_inputs": INPUTS, "small": CHECKPOINT, "plan": CHECKPOINT, "progress": "shown unless --json"},
        ),
    },
    "evaluate": {
        bough.perplexity: ({"tokens": "text"}, {}),
        bough.zero_shot: ({}, {}),
    },
    "finetune": {
        bough.finetune: ({}, TRAINING), Training: ({"folder": "out"}, TRAINING), QAT: ({}, {"example_inputs": INPUTS}),
        LoRA: (LORA, {}),
    },
    "pipeline": {
        bough.Pipeline: ({}, {**dict.fromkeys(inspect.signature(bough.Pipeline).parameters, "FILE says it")}),
        bough.Pipeline.run: (
            {"folder": "out"}, {"self": "FILE describes it", "progress": "shown unless --json"}
        ),
    },
    "quantize": {bough.quantize: ({}, {"example_inputs": INPUTS})},
    "export": {
        bough.export: (
            {"path": "out"},
            {"example_inputs": INPUTS, "more_inputs": "batches of other sizes: --dynamic-batch checks two, else use the API"},
        )
    },
    "distill": {
        bough.distill: ({}, {**TRAINING, "small": CHECKPOINT, "distillation": "its fields are options"}),
        Training: ({"folder": "out"}, TRAINING),
        Distillation: ({"features": "features_weight", "match": "features"}, {}),
        LoRA: (LORA, {}),
        QAT: ({}, {"example_inputs": INPUTS}),
    },
    "supernet profile": {
        bough.supernet: ({}, SUPERNET),
        bough.Supernet.profile: ({"budgets": "budget"}, {"self": "made by the options of bough.supernet", "energy": ENERGY}),
    },
    "supernet train": {
        bough.supernet: ({}, {"example_inputs": INPUTS}),
        bough.Supernet.fit: ({"subnets": "only_budgets"}, FIT),
        bough.Sandwich: ({}, {"distillation": "its fields are options"}),
        Training: ({"folder": "out"}, {"progress": "shown unless --json", "start": "made from the model's weights"}),
    },
    "supernet extract": {
        bough.Supernet.extract: (
            {"target": "budget", "drop": "subnet"}, {"self": "--checkpoint holds it", "energy": ENERGY}
        ),
    },
}  # fmt: skip


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Runs `bough` with some words in this process; gives the exit status and what is written on stderr."""

    def called(*words):
        monkeypatch.setattr(sys, "argv", ["bough", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr().err

    return called


CASES = [(command, api) for command, apis in APIS.items() for api in apis]


@pytest.mark.parametrize(("command", "api"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_every_option_of_the_api_is_one_of_the_command(command, api):
    """What is not has a reason."""
    renamed, reasons = APIS[command][api]
    asked = [renamed.get(name, name) for name in inspect.signature(api).parameters if name not in reasons]
    options = options_of(command.split())
    assert [name for name in asked if name not in options] == []
    assert renamed.keys() <= inspect.signature(api).parameters.keys()


@pytest.mark.parametrize("command", APIS)
def test_no_reason_is_out_of_date(command):
    there = {name for api in APIS[command] for name in inspect.signature(api).parameters}
    reasons = {name for _, given in APIS[command].values() for name in given}
    assert reasons <= there
    assert not reasons & options_of(command.split()) - {"model", "training", "planning"}


@pytest.mark.parametrize("command", APIS)
def test_no_default_is_written_twice(command):
    """Options that are left out are not passed on, so the API's own defaults hold."""
    renamed = {old: new for names, _ in APIS[command].values() for old, new in names.items()}
    shared = {renamed.get(name, name) for api in APIS[command] for name in inspect.signature(api).parameters}
    parameters = inspect.signature(commands.command_of(command.split())).parameters
    flags = {  # one cut; the name of a function
        "prune": {"iterative", "schedule", "overwrite"}, "sparsify": {"overwrite"}, "supernet train": {"only_budgets"}
    }  # fmt: skip
    own = flags.get(command, set())
    given = {n: p.default for n, p in parameters.items() if n in shared - own and p.default not in (None, p.empty)}
    assert given == {}


@pytest.mark.parametrize("command", [*(c.__name__ for c in EXAMPLES), *(f"supernet {c.__name__}" for c in supernet.EXAMPLES)])
def test_help_shows_an_example_and_the_exit_status(command):
    text = " ".join(run(*command.split(), "--help").split())
    assert f"Example: bough {command} " in text
    assert "Exit status: 0 done, 1 failed" in text


def test_examples_name_options_that_exist():
    for example in (*EXAMPLES.values(), *supernet.EXAMPLES.values()):
        given = {word for word in example.split() if word.startswith("--")}
        assert given <= {flag(name) for name in options_of(example.split())}


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["inspect", MODEL], 0, ""),
        (["--help"], 0, ""),
        (["inspect", "nowhere:f"], 1, "can not be imported"),
        (["prune", MODEL, "--budget", "params=1"], 1, "lower --minimum, --round-to or --ignore"),
        (["prune", MODEL, "--budget", "params=60%", "--refit"], 1, "bough: --refit needs data"),
        (["inspect", MODEL, "--no-such-option"], 2, "No such option"),
        (["no-such-command"], 2, "No such command"),
        (["prune", MODEL], 2, "Missing option"),
    ],
)
def test_exit_status(words, status, message, command_line):
    found, said = command_line(*words)
    assert found == status
    assert message in said
    assert "Traceback" not in said
    assert status != 1 or said.count("\n") == 1


@pytest.mark.parametrize("words", [["--debug", "inspect", "nowhere:f"], ["inspect", "nowhere:f", "--debug"]])
def test_debug_shows_the_traceback(words, command_line):
    status, said = command_line(*words)
    assert status == 1
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("bough: nowhere:f needs the module nowhere")


def test_debug_by_the_environment(monkeypatch, command_line):
    monkeypatch.setenv("BOUGH_DEBUG", "1")
    assert "Traceback" in command_line("inspect", "nowhere:f")[1]
    monkeypatch.setenv("BOUGH_DEBUG", "0")
    assert "Traceback" not in command_line("inspect", "nowhere:f")[1]


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "bough", "inspect", "nowhere:f"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("bough: nowhere:f needs the module nowhere")


@pytest.mark.parametrize(
    ("command", "message", "said"),
    [
        ("prune", "prune(refit=True) needs data: such as data=loader", "--refit needs data: such as --data module:fn"),
        ("prune", "round_to='x' is unknown", "--round-to 'x' is unknown"),
        ("prune", "use on_conflict='freeze' or 'raise'", "use --on-conflict 'freeze' or 'raise'"),
        ("prune", "latency='3 ms' needs a table", "--budget latency='3 ms' needs a table"),
        ("prune", "Plan without uniform=True", "Plan without --uniform"),
        ("prune", "leave round_to as it is", "leave --round-to as it is"),
        ("compare", "allocation='x' is unknown", "--allocations 'x' is unknown"),
        ("compare", "compare(refit=True) needs data: data=loader (--data)", "--refit needs data: --data module:fn"),
        ("finetune", "Training(lr=0.0, warmup=1): lr above 0", "--lr 0.0, --warmup 1: lr above 0"),
        ("finetune", "precision='int8'", "--precision 'int8'"),  # an option of its own, not a part of a budget
        ("prune", "precision='int8'", "--budget precision='int8'"),
        ("inspect", "round_to='x' is unknown", "round_to='x' is unknown"),  # it has no such option
        ("prune", "drop: 'a' is no layer", "--drop: 'a' is no layer"),
        ("prune", "latency: at most 3 ms", "latency: at most 3 ms"),
        ("prune", "thinet(sites=64)", "thinet(sites=64)"),
    ],
)
def test_messages_speak_of_flags(command, message, said):
    assert in_flags(message, options_of([command])) == said


def test_layers_that_drop_takes_are_listed():
    assert "blocks.3" in run("inspect", "tests.test_cli:stack")
    assert "left out: blocks.3" in run("prune", "tests.test_cli:stack", "--budget", "params=80%", "--drop", "blocks.3")


def test_the_groups_that_were_cut_are_listed():
    found = bough.prune(*same_mlp(), bough.Budget(params="60%")).plan.groups
    printed = run("prune", "tests.zoo.tasks:same_mlp", "--budget", "params=60%")
    cut = [f"cut: {name}: {kept} of {size}" for name, (kept, size) in found.items() if kept < size]
    assert cut
    assert [line for line in printed.splitlines() if line.startswith("cut: ")] == cut
