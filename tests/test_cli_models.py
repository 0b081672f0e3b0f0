"""MODEL on the command line: where it and its weights come from."""

import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bough.cli import weights as cli_weights
from bough.cli.models import resolve
from bough.cli.weights import impatient
from bough.errors import BoughError, CheckpointError, ModelReferenceError
from tests.test_cli import MODEL, run
from tests.zoo import small
from tests.zoo.shim import declare_torchvision_ops

HERE = "tests.test_cli_models"


def tied():
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 7, bias=False))
    net[4].weight = net[0].weight
    return net, torch.randint(7, (1, 3))


def three_things():
    return (*small.mlp(), "and a third")


def needs_width(width, *, depth):
    raise AssertionError("is not called")


def raises():
    raise ValueError("width must be even\nand more")


instance = small.mlp()[0]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(cli_weights, "_reached", lambda url: False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three_things", r"returned 3 things: the model is wanted, or \(model, example inputs\)$"),
        ("needs_width", r"needs arguments \(width, depth\)"),
        ("raises", r"raised ValueError: width must be even \(test_cli_models.py, line \d+; --debug shows the traceback\)$"),
        ("HERE", r"is a str, not a callable"),
        ("instance", r"gives no example inputs"),
    ],
)
def test_what_a_builder_may_not_do_is_one_line(name, message):
    with pytest.raises(ModelReferenceError, match=message) as error:
        run("inspect", f"{HERE}:{name}")
    assert "\n" not in str(error.value)


def test_a_model_that_is_there_already():
    assert "neuron" in run("inspect", f"{HERE}:instance", "--input-shape", "2,5")


@pytest.mark.parametrize("form", ["safetensors", "torch", "nested"])
def test_weights_from_a_file(form, tmp_path):
    trained = small.mlp()[0]
    file = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(trained.state_dict(), file)
    else:
        torch.save(trained.state_dict() if form == "torch" else {"state_dict": trained.state_dict(), "epoch": 3}, file)
    given = resolve(MODEL, weights=str(file))
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), given.model.parameters(), strict=True))
    words = ["prune", MODEL, "--budget", "params=60%", "--weights", str(file), "--json"]
    assert json.loads(run(*words))["weights"] == {"source": "file", "detail": f"from {file}"}


def test_tied_weights_need_one_name(tmp_path):
    net = tied()[0]
    state = {n: t for n, t in net.state_dict().items() if n != "4.weight"}
    torch.save(state, tmp_path / "tied.pt")
    given = resolve(f"{HERE}:tied", weights=str(tmp_path / "tied.pt")).model
    assert torch.equal(given[4].weight, net[0].weight)


def test_weights_that_do_not_fit_are_one_line(tmp_path):
    state = small.mlp()[0].state_dict()
    del state["0.bias"]
    state["2.weight"], state["head.weight"] = torch.zeros(6, 9), torch.zeros(1)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError) as error:
        run("inspect", MODEL, "--weights", str(tmp_path / "other.pt"))
    said = str(error.value)
    assert "1 missing: 0.bias; 1 unexpected: head.weight; 1 of another shape: 2.weight is [6, 9] there and [6, 8]" in said
    assert "\n" not in said


@pytest.mark.parametrize("content", ["model", "junk", "list", "nothing"])
def test_files_that_are_no_weights(content, tmp_path):
    file = tmp_path / "file.pt"
    if content == "model":
        torch.save(small.mlp()[0], file)
    elif content == "list":
        torch.save([torch.zeros(1)], file)
    elif content == "junk":
        file.write_bytes(b"no weights at all")
    with pytest.raises(BoughError, match="--weights") as error:
        run("inspect", MODEL, "--weights", str(file))
    assert "\n" not in str(error.value)


def test_random_weights_are_said_and_the_same_each_time(offline):
    _torchvision()
    pytest.importorskip("timm")
    words = ["prune", "timm:test_resnet.r160_in1k", "--budget", "macs=70%"]
    assert "weights: RANDOM" in run(*words)
    weights = json.loads(run(*words, "--json"))["weights"]
    assert weights["source"] == "random"
    assert "can not be fetched" in weights["detail"]
    first, second = (resolve("timm:test_resnet", quiet=True).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    with pytest.raises(ModelReferenceError, match=r"--weights pretrained: .* can not be fetched"):
        run(*words, "--weights", "pretrained")
    assert "shapes alone" in run("inspect", "timm:test_resnet")


def _torchvision():
    try:
        declare_torchvision_ops()
    except ImportError:
        return None
    return True


def test_torchvision_by_name(offline, monkeypatch, tmp_path):
    if _torchvision() is None:
        pytest.skip("torchvision is not installed")
    from torchvision.models import squeezenet1_1

    words = ["prune", "torchvision:squeezenet1_1", "--budget", "macs=70%", "--json"]
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))  # where nothing was fetched before
    assert json.loads(run(*words))["weights"]["source"] == "random"
    torch.save(squeezenet1_1().state_dict(), tmp_path / "weights.pth")
    assert json.loads(run(*words, "--weights", str(tmp_path / "weights.pth")))["weights"]["source"] == "file"


def test_pretrained_weights_are_used_where_they_were_fetched(offline, monkeypatch, tmp_path):
    """With no server in reach, from torch's cache."""
    if _torchvision() is None:
        pytest.skip("torchvision is not installed")
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    trained = squeezenet1_1()
    (tmp_path / "checkpoints").mkdir()
    torch.save(trained.state_dict(), tmp_path / "checkpoints" / SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2])
    given = resolve("torchvision:squeezenet1_1")
    assert given.weights.source == "pretrained"
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), given.model.parameters(), strict=True))


def test_hugging_face_folders(tmp_path):
    transformers = pytest.importorskip("transformers")
    _torchvision()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
    config = transformers.BertConfig(**sizes, architectures=["BertForSequenceClassification"])
    config.save_pretrained(tmp_path / "config")
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "whole")
    transformers.BertModel(config).save_pretrained(tmp_path / "headless")
    shutil.copy(tmp_path / "config" / "config.json", tmp_path / "headless")
    found = {name: resolve(f"hf:{tmp_path / name}", quiet=True).weights for name in ("config", "whole", "headless")}
    assert {name: source.source for name, source in found.items()} == {
        "config": "random", "whole": "pretrained", "headless": "random"
    }  # fmt: skip
    assert "classifier.bias" in found["headless"].detail
    assert "weights: RANDOM" in run("inspect", f"hf:{tmp_path / 'config'}")


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    """It accepts the connection and says nothing: without a limit of its own, asking would wait for ever."""
    monkeypatch.setattr(cli_weights, "_REACH_SECONDS", 0.1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with impatient(f"http://127.0.0.1:{server.getsockname()[1]}") as reached:
            assert not reached
            assert socket.getdefaulttimeout() is not None
    assert socket.getdefaulttimeout() is None


def test_a_library_that_can_not_be_imported_is_not_blamed(monkeypatch):
    """torchvision's binaries do not fit: the message says so, and where to read on."""
    from bough.cli import references

    def broken(module):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(references.importlib, "import_module", broken)
    with pytest.raises(ModelReferenceError, match=r"torchvision::nms does not exist.*the very torch.*README") as error:
        run("inspect", "timm:resnet18")
    assert torch.__version__ in str(error.value)
    with pytest.raises(ModelReferenceError) as error:
        run("inspect", "mine:build")
    assert "torchvision, which" not in str(error.value)
