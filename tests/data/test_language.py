"""Language models: prompts, conversations and texts as tokens, their loss and metrics, and a fine-tune end to end."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import tiny_llama
import torch
from commands import cli
from lazily import needed
from torch.nn import functional

import subcompress
from subcompress import Data, SubcompressError
from subcompress.data import datasets as sets
from subcompress.data import language, pretrained
from subcompress.data.ragged import Ragged
from subcompress.subspace import measuring
from subcompress.training.preflight import check_first_batch
from subcompress.training.tasks import Task, evaluate
from subcompress_cli import texts as cli_texts

needed("transformers")

TASK = ",task=causal-lm"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A tiny Llama in several shards, its head tied to its embedding."""
    return tiny_llama.make(tmp_path_factory.mktemp("llama") / "base", shards="4KB")


@pytest.fixture(scope="module")
def tokenizer(llama):
    return pretrained.load_tokenizer(llama)


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def spelled(tokenizer, ids) -> str:
    return " ".join("_" if i == -100 else tokenizer.convert_ids_to_tokens(int(i)) for i in ids)


def rows_of(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = data.train[torch.arange(len(data.train))]
    return x["input_ids"], y


# examples


def test_only_the_completion_is_learned(tokenizer, tmp_path):
    rows = [{"prompt": "say red", "completion": "red"}] * 8 + [{"prompt": "say it again one", "completion": "one"}] * 12
    data = language.load(lines(tmp_path / "a.jsonl", *rows), tokenizer)
    x, y = data.train[torch.tensor([0])]
    first = "red" if "red" in spelled(tokenizer, x["input_ids"][0]) else "one"
    assert spelled(tokenizer, y[0]).endswith(f"_ {first} </s>")
    assert spelled(tokenizer, x["input_ids"][0]).startswith("<s> say")
    ids, labels = rows_of(data)
    assert labels.shape == ids.shape and data.loss == "next-token"
    assert bool((labels[ids == tokenizer.bos_token_id] == -100).all())
    assert "16 train, 2 validation, 2 test prompts with completions" in data.notes[0]


def test_only_the_answers_of_a_conversation_are_learned(tokenizer, tmp_path):
    asked = [("system", "it"), ("user", "say red"), ("assistant", "red"), ("user", "again"), ("assistant", "red red")]
    row = {"messages": [{"role": r, "content": c} for r, c in asked], "split": "train"}
    rows = [row, row | {"split": "validation"}, row | {"split": "test"}]
    ids, labels = rows_of(language.load(lines(tmp_path / "a.jsonl", *rows), tokenizer))
    assert spelled(tokenizer, ids[0]) == (
        "system is it </s> user is say red </s> assistant is red </s> user is again </s> assistant is red red </s>"
    )
    assert spelled(tokenizer, labels[0]) == "_ " * 11 + "red </s> " + "_ " * 6 + "red red </s>"


def test_a_text_is_learned_whole_and_cut_to_the_length(tokenizer, tmp_path):
    rows = [{"text": "say it again " * (1 + i % 2)} for i in range(20)]
    data = language.load(lines(tmp_path / "a.jsonl", *rows), tokenizer, length=6)
    _, labels = rows_of(data)
    assert {spelled(tokenizer, row) for row in labels} == {"_ say it again </s> _", "_ say it again say it"}
    assert data.notes[-1] == "10 of 20 examples are cut to length=6 tokens"


def test_packing_pads_nothing(tokenizer, tmp_path):
    path = lines(tmp_path / "a.jsonl", *({"text": "say it"} for _ in range(20)))
    data = language.load(path, tokenizer, length=8, packing=True)
    ids, labels = rows_of(data)
    assert len(data.train) == 8 and ids.shape == (8, 8)  # 16 texts of 4 tokens
    assert spelled(tokenizer, labels[0]) == "_ say it </s> _ say it </s>"
    assert any("packed into 8 of 8 tokens" in note for note in data.notes)
    assert len(data.validation) == 2


def test_splits_that_are_missing_are_cut_from_the_training_rows(tokenizer, tmp_path):
    rows = [{"text": f"say w{i}", "split": "train"} for i in range(30)]
    found = [language.load(lines(tmp_path / "a.jsonl", *rows), tokenizer) for _ in range(2)]
    assert [len(s) for s in (found[0].train, found[0].validation, found[0].test)] == [24, 3, 3]
    assert found[0].digest() == found[1].digest()
    assert [note for note in found[0].notes if "drawn by a fixed seed" in note] == [
        f"a.jsonl has no split {name}: 3 training rows, drawn by a fixed seed, are taken"
        for name in ("validation", "test")
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a", "answer": "b"}, "a column text, or prompt and completion, or messages; .* question, answer"),
        ({"prompt": "say " * 9, "completion": "red"}, "line 1: the prompt fills all 8 tokens.*longest prompt has 10"),
        ({"prompt": "", "completion": "red"}, "line 1: prompt must be a text; got it is empty"),
        ({"text": 3}, "line 1: text must be a text; got int"),
        ({"messages": "hello"}, "line 1: messages must be a list of objects; got str"),
        ({"messages": [{"role": "user"}]}, "line 1: a message must have role and content, both texts; one has role"),
        ({"messages": [{"role": "user", "content": "say"}]}, "line 1: this conversation has no answer"),
    ],
)
def test_one_line_for_rows_that_teach_nothing(tokenizer, tmp_path, row, words):
    with pytest.raises(SubcompressError, match=words) as e:
        language.load(lines(tmp_path / "a.jsonl", *[row] * 20), tokenizer, length=8)
    assert "\n" not in str(e.value)


def test_one_line_for_a_tokenizer_that_does_not_do(tokenizer, tmp_path, llama):
    plain = tiny_llama.tokenizer()
    row = {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": "it"}]}
    with pytest.raises(SubcompressError, match=r"this tokenizer has no chat template"):
        language.load(lines(tmp_path / "a.jsonl", *[row] * 20), plain)
    plain.chat_template = "{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(SubcompressError, match="changes earlier messages"):
        language.load(lines(tmp_path / "a.jsonl", *[row] * 20), plain)
    ids = [torch.tensor([1, 64, 3])] * 4
    split = Ragged({"input_ids": ids}, list(ids))
    net = pretrained.load_model(llama, "causal-lm")
    with pytest.raises(SubcompressError, match=r"the train split has the token 64, .* 0 to 63: give the tokenizer"):
        check_first_batch(net, Data(split, split, split, loss="next-token"), Task.of("next-token"), 2, "cpu")


def test_labels_of_tokens_are_looked_at_beyond_the_examples_that_pass_through(llama):
    ids = [torch.tensor([1, 2, 3, 4][: 2 + i % 3]) for i in range(40)]
    labels = [t.clone() for t in ids]
    net, shortest = pretrained.load_model(llama, "causal-lm"), 39
    labels[shortest][0] = 64  # no token comes before it, so that it is not learned

    def look(loss):
        split = Ragged({"input_ids": ids}, labels)
        check_first_batch(net, Data(split, split, split), Task.of(loss), 2, "cpu")

    look("next-token")
    with pytest.raises(
        SubcompressError, match=r"labels must be between 0 and 63, .* the train split has 64: give the tok"
    ):
        look("per-token")
    labels[shortest][1] = 64
    with pytest.raises(
        SubcompressError, match=r"labels must be between 0 and 63, .* the train split has 64: give the tok"
    ):
        look("next-token")


# loss and metrics


def test_the_loss_and_the_metrics_are_of_the_next_token(llama, tokenizer, tmp_path):
    data = language.load(tiny_llama.questions(tmp_path / "a.jsonl", 90), tokenizer)
    net = pretrained.load_model(llama, "causal-lm").eval()
    x, y = data.validation[torch.arange(len(data.validation))]
    with torch.no_grad():
        logits = net(**x).logits[:, :-1]
        theirs = float(net(**x, labels=y).loss)
    said, wanted = logits.argmax(-1), y[:, 1:]
    loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    known = wanted != -100
    expected = {
        "loss": float(loss),
        "perplexity": float(loss.exp()),
        "token-accuracy": float((said == wanted)[known].double().mean()),
        "exact-match": float(((said == wanted) | ~known).all(1).double().mean()),
    }
    assert theirs == pytest.approx(expected["loss"], rel=1e-5)
    for name, value in expected.items():
        for size in (1000, 2):  # batches are padded to other lengths
            assert evaluate(net, data.validation, Task.suiting(data, None, name), size) == pytest.approx(
                value, rel=1e-5
            )
    assert Task.suiting(data, "cross-entropy").metric_name == "loss"
    right = torch.nn.functional.one_hot(y.clamp_min(0).roll(-1, 1), 64).float()
    for name in ("token-accuracy", "exact-match"):
        meter = Task.of("next-token", name).meter(len(y))
        meter.see(right, y, len(y))
        assert meter.result() == 1.0


def test_labels_of_tokens_are_padded_and_checked():
    split = Ragged({"input_ids": [torch.arange(1, 3), torch.arange(1, 4)]}, [torch.arange(2), torch.arange(3)])
    _, y = split[torch.tensor([0, 1])]
    assert y.tolist() == [[0, 1, -100], [0, 1, 2]]
    with pytest.raises(SubcompressError, match="example 1 has 2 labels for 3"):
        Ragged({"input_ids": [torch.ones(2), torch.ones(3)]}, [torch.arange(2), torch.arange(2)])
    with pytest.raises(SubcompressError, match=r"labels of tokens must be integers \(N, L\)"):
        Task.of("per-token").loss_of(torch.nn.Identity(), (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)))
    own = [({"input_ids": torch.arange(1, 2 + i)}, torch.arange(1 + i)) for i in range(3)]
    assert Data(own, own, own).train[torch.tensor([0, 2])][1].tolist() == [[0, -100, -100], [0, 1, 2]]


# networks


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("casual-lm", "or a class of transformers, AutoModelFor.*did you mean causal-lm"),
        ("AutoModelForCasualLM", "has no AutoModelForCasualLM.*AutoModelForCausalLM"),
    ],
)
def test_tasks_are_those_of_transformers(llama, task, words):
    with pytest.raises(SubcompressError, match=words):
        pretrained.load_model(llama, task)


def test_other_tasks_dtypes_and_what_a_file_says_of_them(tmp_path):
    from subcompress.tensors.layout import Layout

    half = tiny_llama.make(tmp_path / "half", torch.bfloat16)
    tokens = cli_texts.model(f"hf:{half},task=token-classification,labels=5")
    assert tokens(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 3, 5)
    named = pretrained.load_model(half, "AutoModelForCausalLM")
    kept = cli_texts.model(f"hf:{half},task=causal-lm,dtype=auto")
    assert (named.dtype, kept.dtype) == (torch.float32, torch.bfloat16)
    for net, task in ((tokens, "token-classification"), (kept, "causal-lm")):
        layout = Layout.of(net.state_dict())
        assert pretrained.task_of(layout, half) == task
        assert cli_texts.model(f"hf:{half},task={task}", layout=layout).dtype == net.dtype
    with pytest.raises(SubcompressError, match=r"dtype must be one of float32, .* got 'int8'"):
        pretrained.load_model(half, dtype="int8")


def test_one_line_for_shards_that_are_missing(llama, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in llama.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    next(broken.glob("model-00002*")).unlink()
    data = tiny_llama.questions(tmp_path / "a.jsonl")
    for base in ([], ["--base", broken]):
        result = cli("fit", "--model", f"hf:{broken}{TASK}", *base, "--data", data, "--d", 9, "-o", tmp_path / "run")
        assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert "model-00002" in result.stderr


# data sets


def test_data_sets_of_the_library(llama, tokenizer, tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [json.loads(line) for line in tiny_llama.questions(tmp_path / "q.jsonl").read_text().splitlines()]
    named = [{"ask": r["prompt"], "completion": r["completion"]} for r in rows]
    train, dev = library.Dataset.from_list(named), library.Dataset.from_list(named[:5])
    saved = library.DatasetDict({"train": train, "dev": dev})
    saved.save_to_disk(str(tmp_path / "saved"))
    name = f"hf:{tmp_path / 'saved'}"
    data = cli_texts.data(f"{name},prompt=ask,validation=dev,length=20", f"hf:{llama}{TASK}")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [54, 5, 6]
    assert any("saved has no split test: 6 training rows" in note for note in data.notes)
    for options, words in (
        ("", "prompt and completion, or messages; saved has ask, completion"),
        (",prompt=aks", "saved has no column aks; it has ask, completion: did you mean|saved has no column aks"),
        (",prompt=ask,test=tset", "test=tset is not a split of saved, which has train, dev"),
        (",colums=ask", "takes length, .*got 'colums'"),
    ):
        with pytest.raises(SubcompressError, match=words):
            cli_texts.data(name + options, f"hf:{llama}{TASK}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SubcompressError, match=r"needs the library datasets.*pip install datasets"):
        cli_texts.data(name, f"hf:{llama}{TASK}")


def test_classes_of_a_data_set_keep_their_numbers(tokenizer, tmp_path):
    library = pytest.importorskip("datasets")
    features = library.Features({"sentence": library.Value("string"), "label": library.ClassLabel(names=["yes", "no"])})
    rows = {"sentence": ["say it", "not it"] * 20, "label": [0, 1] * 20}
    library.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "d"))
    source = sets.Source(str(tmp_path / "d"), columns={"text": "sentence"})
    data = sets.load(source, tokenizer, continued=False)
    assert data.facts.labels == ("yes", "no") and len(data.train) == 32
    said = tokenizer("say it")["input_ids"]
    assert all((data.train.tokens(i).tolist() == said) == (int(data.train.y[i]) == 0) for i in range(32))
    with pytest.raises(SubcompressError, match=r"columns text and label; d has sentence, label: give text=COLUMN"):
        sets.load(sets.Source(str(tmp_path / "d")), tokenizer, continued=False)


# end to end


def test_from_a_fit_to_generated_text(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "STEPS", 4)
    data, file = tiny_llama.questions(tmp_path / "a.jsonl", 40), tmp_path / "net.safetensors"
    options = ["--base", llama, "--act-on", "all", "--d", 40, "--metric", "exact-match", "-o", tmp_path / "run"]
    options += ["--steps", 3, "--batch-size", 8, "--threads", 1]
    result = cli("fit", "--model", f"hf:{llama}{TASK}", "--data", data, *options)
    assert result.exit_code == 0, result.output
    assert "new, from the seed" not in result.stderr, "a tied head is that of the base"
    assert cli("pack", tmp_path / "run", "-o", file).exit_code == 0
    net = subcompress.load(file, pretrained.load_model(llama, "causal-lm", weights=False), base=llama)
    assert net.lm_head.weight is net.model.embed_tokens.weight
    dense = tmp_path / "dense"
    dense.mkdir()
    (dense / "config.json").write_bytes((llama / "config.json").read_bytes())
    assert cli("unpack", file, "--base", llama, "-o", dense / "model.safetensors").exit_code == 0
    other = pretrained.load_model(dense, "causal-lm").eval()
    ids = torch.tensor([[1, 9, 3]])
    with torch.no_grad():
        assert torch.equal(net(input_ids=ids).logits, other(input_ids=ids).logits)
        wanted = other.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=2)[0, 3:]
    text = pretrained.load_tokenizer(llama).decode(wanted, skip_special_tokens=True)
    for model in ([], ["--model", f"hf:{llama}{TASK}"]):
        said = cli("predict", file, "--base", llama, *model, "--generate", "say red", "--max-new-tokens", 5)
        assert (said.exit_code, said.stdout.strip()) == (0, text), said.output
    said = cli("predict", file, "--base", llama, "--generate", "say red", "--max-new-tokens", 40)
    assert said.exit_code == 1 and re.search("the prompt has 3", said.stderr)
    said = cli("predict", file, "--base", llama, "--input", "say red")
    assert said.exit_code == 1 and "for a language model give --generate PROMPT" in said.stderr
