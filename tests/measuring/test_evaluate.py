"""`bough evaluate` on folders of Hugging Face and on what bough saves: perplexity, metrics, tasks of lm-eval."""

import json
from importlib.util import find_spec

import pytest
import torch

import bough
from bough.errors import TraceError
from tests.zoo.transformers_text import TEXT, built

WORDS = [f"w{i}" for i in range(90)]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{"test": "{data}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
CODE = """
import torch

def batches():
    torch.manual_seed(0)
    return [{"input_ids": torch.randint(3, 90, (4, 9))} for _ in range(2)]

def task():
    return [torch.zeros(1)], None, None, lambda model: sum(p.numel() for p in model.parameters())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama with a tokenizer of whole words, a text, and a task file of lm-eval with its data."""
    pytest.importorskip("transformers")
    model = built("llama", "CausalLM", **TEXT)
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model.save_pretrained(path / "model")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, **{w: i + 3 for i, w in enumerate(WORDS)}}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(path / "model")
    numbers = torch.randint(90, (150,), generator=torch.Generator().manual_seed(2)).tolist()
    (path / "text.txt").write_text(" ".join(WORDS[i % 90] for i in numbers))
    (path / "tasks").mkdir()
    rows = [{"question": f"w{i} w{i + 1}", "choices": [f" w{i + 2}", f" w{i + 7}"], "answer": i % 2} for i in range(12)]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "tasks" / "next_word.yaml").write_text(TASK.format(name="next_word", data=path / "data.jsonl"))
    (path / "evaluate_code.py").write_text(CODE)
    return path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    from bough.cli import main

    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def command(*words):
        monkeypatch.setattr("sys.argv", ["bough", *words])
        with pytest.raises(SystemExit) as end:
            main()
        written = capsys.readouterr()
        return end.value.code or 0, written.out, written.err

    return command


def test_perplexity_and_metric_of_a_model_and_what_is_left_of_it(run, folder):
    for out, more in (("whole", ["--uniform"]), ("ragged", [])):
        given = ["--data", "evaluate_code:batches", "--importance", "wanda", "--out", out]
        assert run("prune", "hf:model", "--budget", "params=70%", *given, *more)[0] == 0
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained("model")((folder / "text.txt").read_text())["input_ids"]
    for out in ("whole", "ragged"):
        words = (
            "evaluate",
            "hf:model",
            "evaluate_code:task",
            "--checkpoint",
            out,
            "--text",
            "text.txt",
            "--window",
            "16",
            "--json",
        )
        code, written, _ = run(*words)
        found = json.loads(written.strip().splitlines()[-1])
        dense = AutoModelForCausalLM.from_pretrained("model")
        small = bough.load(out, lambda: AutoModelForCausalLM.from_pretrained("model"))
        assert code == 0
        for name, model in (("model", dense), ("pruned", small)):
            expected = bough.perplexity(model, ids, window=16)
            assert found[name]["perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)
            assert found[name]["metric"] == sum(p.numel() for p in model.parameters())
    code, written, _ = run("evaluate", "hf:whole", "--text", "text.txt", "--tokenizer", "model", "--window", "16")
    assert code == 0
    assert "model: perplexity" in written


@torch.no_grad()
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is an extra: pip install 'bough[lm-eval]'")
def test_tasks_of_lm_eval_on_local_files(run, folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("model")
    model = AutoModelForCausalLM.from_pretrained("model")
    found = bough.zero_shot(model, tokenizer, "next_word", task_folder=folder / "tasks", batch_size=4)
    right = []
    for row in map(json.loads, (folder / "data.jsonl").read_text().splitlines()):
        question = tokenizer(row["question"])["input_ids"]
        logits = model(torch.tensor([question])).logits[0, -1]
        scores = [float(logits[tokenizer(choice)["input_ids"][0]]) for choice in row["choices"]]
        right.append(scores.index(max(scores)) == row["answer"])
    assert found == {"next_word": {"acc": pytest.approx(sum(right) / len(right))}}
    assert run("prune", "hf:model", "--budget", "params=70%", "--importance", "l2", "--out", "small")[0] == 0
    words = ("--checkpoint", "small", "--tasks", "next_word", "--task-folder", "tasks", "--limit", "6", "--json")
    code, written, _ = run("evaluate", "hf:model", *words)
    assert code == 0
    rows = json.loads(written.strip().splitlines()[-1])
    assert rows["model"]["tasks"]["next_word"]["acc"] == pytest.approx(sum(right[:6]) / 6)
    assert 0 <= rows["pruned"]["tasks"]["next_word"]["acc"] <= 1
    with pytest.raises(TraceError, match="there is no task 'nothing'"):
        bough.zero_shot(model, tokenizer, "nothing", task_folder=folder / "tasks")
    with pytest.raises(TraceError, match="no model of Hugging Face"):
        bough.zero_shot(torch.nn.Linear(2, 2), tokenizer, "next_word")


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_error_says_what_to_install():
    with pytest.raises(TraceError, match=r"pip install 'bough\[lm-eval\]'"):
        bough.zero_shot(torch.nn.Linear(2, 2), None, "arc_easy")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to evaluate"), (("--text", "missing.txt"), "there is no such file"),
        (("--text", "text.txt", "--shots", "1"), "--shots is for --tasks"), 
        (("evaluate_code:task", "--stride", "4"), "--stride is for"),
        (("--text", "text.txt", "--tokenizer", "tasks"), "tasks has no tokenizer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(run, words, message):
    code, _, error = run("evaluate", "hf:model", *words)
    assert code == 1
    assert message in error
