"""Files of texts: CSV, TSV, JSON lines, pairs and values."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from subcompress import SubcompressError
from subcompress.data import pretrained, texts
from subcompress.training.preflight import check_first_batch
from subcompress.training.tasks import Task
from subcompress_cli import texts as cli_texts

# CSV


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "texts.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_what_a_file_may_look_like(tmp_path):
    rows = ['id,"Text", label ,split', '1,"a ""good"", long', 'film",5,train', "2,bad,-1,train", "", "3,so so,10,test"]
    found = texts.read(written(tmp_path, "\ufeff" + "\r\n".join([*rows, "4,fine,5,dev"]) + "\r\n"))
    assert found.texts == ['a "good", long\r\nfilm', "bad", "so so", "fine"]
    assert found.classes == ("-1", "5", "10")
    assert found.labels.tolist() == [1, 0, 2, 1]
    assert [rows.tolist() for rows in found.splits] == [[0, 1], [3], [2]]


def test_rows_are_split_the_same_way_every_time(tmp_path):
    path = written(tmp_path, "label,text\n" + "".join(f"{'no' if i % 3 else 'yes'},t{i}\n" for i in range(100)))
    a, b = texts.read(path), texts.read(path)
    assert [len(rows) for rows in a.splits] == [80, 10, 10]
    assert sorted(torch.cat(a.splits).tolist()) == list(range(100))
    assert all(torch.equal(x, y) for x, y in zip(a.splits, b.splits, strict=True))
    assert a.classes == ("no", "yes")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "names the columns text and label.*it names nothing"),
        ("text,class\na,b\n", "it names text, class"),
        ("text,text,label\na,b,c\n", "each once"),
        ("text,label\na,1\nb,c,2\n", "line 3: 3 fields, where the header has 2"),
        ("text,label\na,1\n  ,2\n", "line 3: the text is empty"),
        ('text,label\n"a\nb",1\nc,\n', "line 4: the label is empty"),
        ("text,label\na,1\nb,1\n", "its 2 rows name 1"),
        ("text,label\n", "its 0 rows name 0"),
        ("text,label,split\na,1,train\nb,2,other\n", "line 3: a split must be train, validation or test; got 'other'"),
        ("text,label,split\na,1,train\nb,2,train\nc,1,test\n", "has no texts for the split validation"),
        ("text,label,split\na,1,train\nb,2,test\nc,1,dev\n", "all training texts of .* have the same label"),
        ('text,label\na,1\n"b,2\n', "line 3: unexpected end of data"),
        ('text,label\n"a"b,1\n', "line 2: .* expected after"),
        (f"text,label\n{'a' * 200_000},1\n", "line 2: field larger than field limit"),
        (b"text,label\ncaf\xe9,1\n", "is not in UTF-8"),
    ],
)
def test_one_line_for_a_file_that_is_none(tmp_path, content, words):
    with pytest.raises(SubcompressError, match=words) as e:
        texts.read(written(tmp_path, content))
    assert "\n" not in str(e.value)


def test_a_file_that_is_not_there_or_too_large(tmp_path, monkeypatch):
    with pytest.raises(SubcompressError, match="cannot be read: No such file"):
        texts.read(tmp_path / "none.csv")
    monkeypatch.setattr(texts, "MAX_BYTES", 10)
    with pytest.raises(SubcompressError, match="at most 10 bytes"):
        texts.read(written(tmp_path, "text,label\na,1\n"))


def test_long_texts_are_cut_and_that_is_said(tiny, data):
    tokenizer = pretrained.load_tokenizer(tiny[0])
    short = texts.load(tiny[1], tokenizer, 8)
    assert int(short.train.lengths.max()) == 8
    assert short.train[0][0]["input_ids"][-1] == tokenizer.sep_token_id
    assert any("texts are cut to length=8 tokens" in line for line in short.notes)
    assert len(data.notes) == 1
    assert data.digest() != short.digest()
    assert data.facts.labels == ("negative", "positive")
    with pytest.raises(SubcompressError, match="at least 2 tokens"):
        texts.load(tiny[1], tokenizer, 1)


def test_labels_that_are_equal_as_numbers_are_numbered_the_same_way(tmp_path):
    rows = [(label, split) for split in ("train", "validation", "test") for label in ("1", "01", "0", "2")]
    path = tmp_path / "labels.csv"
    path.write_text("text,label,split\n" + "".join(f"word,{label},{split}\n" for label, split in rows))
    assert texts.read(path).classes == ("0", "01", "1", "2")


# TSV, JSON lines, pairs and values

ROWS = [("good film", "so they say", "1"), ('a "bad" one', "it, is", "0"), ("so so", "", "1"), ("fine", "yes", "0")]


def test_tsv_and_json_lines_say_what_csv_says(tmp_path):
    splits = ["train", "train", "dev", "test"]
    rows = [(*row, split) for row, split in zip(ROWS, splits, strict=True)]
    names = ("text", "text_pair", "label", "split")
    with (tmp_path / "a.csv").open("w", newline="") as f:
        csv.writer(f).writerows([names, *rows])
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(row) for row in (names, *rows)) + "\n")
    objects = [dict(zip(names, row, strict=True)) | {"more": [1]} for row in rows]
    objects[0]["label"], objects[1]["label"], objects[2]["text_pair"] = 1, False, None
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(o) for o in objects))
    for suffix in ("csv", "tsv", "jsonl"):
        found = texts.read(tmp_path / f"a.{suffix}")
        assert found.texts == [text for text, *_ in ROWS]
        assert found.pairs == [pair for _, pair, _ in ROWS]
        assert (found.classes, found.labels.tolist()) == (("0", "1"), [1, 0, 1, 0])
        assert [rows.tolist() for rows in found.splits] == [[0, 1], [2], [3]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tsv", "text\tlabel\na\t1\t2\n", "line 2: 3 fields, where the header has 2: remove tabs"),
        ("a.tsv", "text,label\na,1\n", "it names text,label"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"\n', "line 2: .*each line must be a JSON object"),
        ("a.jsonl", "[1]\n", "line 1: each line must have text and label; this one has a list"),
        ("a.jsonl", '{"text": "a", "class": 1}\n', "line 1: .* this one has text, class"),
        ("a.jsonl", '{"text": "a", "label": null}\n', "line 1: the label is empty"),
        ("a.jsonl", '{"text": ["a"], "label": 1}\n', "line 1: text must be a text; got a list"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', "line 1: label must be a text; got a list"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1, "split": "train"}\n{"text": "b", "label": 2}\n',
            "line 2: split is in some lines only",
        ),
    ],
)
def test_one_line_for_other_files_that_are_none(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(SubcompressError, match=words) as e:
        texts.read(tmp_path / name)
    assert "\n" not in str(e.value)


def test_numbers_that_are_not_whole_are_values(tmp_path):
    rows = [f"t{i},{label}" for i, label in enumerate(["0.5", "2", "1e-2", "-3.25"] * 5)]
    path = written(tmp_path, "text,label\n" + "\n".join(rows))
    found = texts.read(path)
    assert found.classes == ()
    assert found.labels[:4].tolist() == pytest.approx([0.5, 2, 0.01, -3.25])
    for labels in (["1.0", "2.0"], ["0.5", "nan"], ["0.5", "inf"], ["0.5", "x"]):
        rows = [f"t{i},{label}" for i, label in enumerate(labels * 10)]
        assert texts.read(written(tmp_path, "text,label\n" + "\n".join(rows))).classes == tuple(labels)


def test_pairs_and_values_reach_the_model(tiny, tmp_path):
    path = tmp_path / "pairs.tsv"
    rows = [f"good film\tbad film {'long ' * (i % 20)}\t{i / 7}" for i in range(40)]
    path.write_text("\n".join(["text\ttext_pair\tlabel", *rows]))
    name = f"hf:{tiny[0]}"
    data = cli_texts.data(f"{path},length=12", name)
    assert data.facts.labels == ("value",)
    assert "pairs of texts with values (--loss mse)" in data.notes[0]
    x, y = data.train[torch.arange(2)]
    assert y.dtype == torch.float32
    assert int(x["token_type_ids"].max()) == 1
    assert x["input_ids"].shape[1] <= 12
    net = cli_texts.model(name, data.facts)
    task = Task.of("mse")
    check_first_batch(net, data, task, 4, "cpu")
    assert task.loss_of(net, (x, y)).isfinite()
    with pytest.raises(SubcompressError, match=r"--loss mse for values"):
        Task.of().loss_of(net, (x, y))
