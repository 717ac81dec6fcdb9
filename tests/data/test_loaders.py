"""Data as people have them: DataLoaders, graphs and ragged examples, other processes that read, labels of any kind."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from made_data import Blobs, Endless, no_children, packed, three
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

import subcompress
from subcompress import Data, Split, SubcompressError
from subcompress.data.reading import OnDemand, of_loader
from subcompress.data.splits import batches, size
from subcompress_cli.loading import data_of


class Noisy(Blobs):
    """With noise of all three kinds."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + 0.1 * torch.randn(4) + 0.1 * np.random.randn() + 0.1 * random.random(), y


class Failing(Blobs):
    def __getitem__(self, i):
        if i == 40:
            raise OSError("disk is gone")
        return super().__getitem__(i)


class Lying(Dataset):
    """torch's own default: a Dataset without a length."""

    def __getitem__(self, i):
        return torch.zeros(4), 0


# --- DataLoaders ---


def test_a_loader_stands_for_its_examples(tmp_path):
    plain = packed(three(Blobs), tmp_path)
    loaders = Data(*[DataLoader(Blobs(), batch_size=7, shuffle=True, drop_last=True) for _ in range(3)])
    assert packed(loaders, tmp_path, restart=True) == plain
    assert size(loaders.train) == 48
    many = Data(*[DataLoader(Blobs(), num_workers=2)] * 3)
    assert isinstance(many.train, OnDemand)
    assert many.train.workers == 2
    assert Data(many.train, many.validation, many.test, workers=0).train.workers == 0


def test_tensors_in_a_loader_are_held_in_memory():
    x, y = torch.randn(9, 4), torch.arange(9)
    assert isinstance(Data(*[DataLoader(TensorDataset(x, y), batch_size=2, num_workers=1)] * 3).train, Split)


def test_a_loader_keeps_to_its_subset():
    """Many people cut their splits with samplers."""
    whole = Blobs()
    train = DataLoader(whole, sampler=SubsetRandomSampler(range(30)))
    data = Data(train, DataLoader(Subset(whole, range(30, 40))), DataLoader(whole, sampler=SubsetRandomSampler([47])))
    assert [size(s) for s in (data.train, data.validation, data.test)] == [30, 10, 1]
    assert torch.equal(data.test[0][0], whole.x[47])


def test_a_sampler_of_fewer_examples_is_kept():
    loaders = [DataLoader(Blobs(), sampler=sampler(range(20))) for sampler in (SequentialSampler, RandomSampler)]
    data = Data(*loaders, DataLoader(Blobs(), sampler=RandomSampler(Blobs())))
    assert [size(s) for s in (data.train, data.validation, data.test)] == [20, 20, 48]


class Opened(Blobs):
    """A data set that each process must prepare, as those on files of HDF5 do."""

    at = None

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + self.at, y


def opening(number):
    dataset = get_worker_info().dataset
    assert isinstance(dataset, Opened)
    dataset.at = 100.0
    np.random.seed(0)
    random.seed(0)


def failing(number):
    raise ValueError("no such\ndisk")


def test_what_a_loader_does_first_in_each_process():
    made = DataLoader(Opened(), num_workers=2, worker_init_fn=opening)
    part = DataLoader(Opened(), num_workers=1, worker_init_fn=opening, sampler=SubsetRandomSampler(range(30)))
    for split in (of_loader("train", made), of_loader("test", part)):
        x = torch.cat([x for x, _ in batches(split, 5)])
        assert torch.equal(x, Blobs().x[: len(x)] + 100)
    assert no_children() is True


def test_a_process_that_cannot_be_prepared_is_one_line():
    split = DataLoader(Blobs(), num_workers=1, worker_init_fn=failing)
    words = r"worker_init_fn raises ValueError: no such disk: fix it, or give --workers 0"
    with pytest.raises(SubcompressError, match=f"^[^\n]*{words}$"):
        list(batches(Data(Blobs(), Blobs(), split).test, 8))
    assert no_children() is True


@pytest.mark.slow
def test_random_changes_do_not_depend_on_what_a_process_does_first(tmp_path):
    alone = packed(three(Noisy), tmp_path)
    seeded = [DataLoader(Noisy(), worker_init_fn=lambda number: np.random.seed(number)) for _ in range(3)]
    assert packed(Data(*seeded), tmp_path, workers=2, restart=True) == alone


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: DataLoader(Endless()), r"the train split is a DataLoader of a stream \(Endless\)"),
        (lambda: DataLoader(Lying(), sampler=[0]), r"the train split is a DataLoader of a stream \(Lying\)"),
        (lambda: DataLoader(Blobs(), batch_size=None), "has batch_size=None"),
        (
            lambda: DataLoader(Blobs(), sampler=WeightedRandomSampler([1.0] * 48, 48)),
            "with WeightedRandomSampler, but fit chooses",
        ),
        (
            lambda: DataLoader(Blobs(), sampler=RandomSampler(Blobs(), num_samples=16)),
            "the RandomSampler in the DataLoader of the train split draws 16 of 48 examples without replacement",
        ),
        (
            lambda: DataLoader(Blobs(), sampler=RandomSampler(Blobs(), replacement=True)),
            "draws 48 of 48 examples with replacement",
        ),
        (lambda: DataLoader(Failing(0)), "train split is empty"),
    ],
)
def test_loaders_that_are_refused(loader, words):
    with pytest.raises(SubcompressError, match=f"^[^\n]*{words}[^\n]*$"):
        Data(loader(), Blobs(), Blobs())


def test_loaders_on_the_command_line(tmp_path):
    (tmp_path / "their_loaders.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\nfrom subcompress import Data\n"
        "class Own(TensorDataset): pass\n"
        "def make(n): return DataLoader(Own(torch.zeros(n, 2), torch.zeros(n)), batch_size=2, num_workers=1)\n"
        "def triple(): return make(8), make(6), make(4)\n"
        "def data(): return Data(*triple())\n"
    )
    for name in ("triple", "data"):
        found = data_of(f"{tmp_path / 'their_loaders.py'}:{name}")
        assert [size(s) for s in (found.train, found.validation, found.test)] == [8, 6, 4]


# --- other processes ---


@pytest.mark.slow
def test_workers_change_nothing(tmp_path):
    """Neither for examples that are always the same, nor for those with random changes."""
    for make in (Blobs, Noisy):
        folder = tmp_path / make.__name__
        folder.mkdir()
        alone = packed(three(make), folder)
        for workers in (1, 3):
            assert packed(three(make), folder, workers=workers, restart=True) == alone
    assert no_children() is True


@pytest.mark.parametrize("workers", [0, 2])
def test_random_changes_differ_between_examples_batches_and_epochs(workers):
    split = OnDemand(Noisy(), workers=workers)
    still = Blobs().x

    def noise(seed):
        return torch.cat([x for x, _ in batches(split, 8, seed=seed)]) - still

    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, second = noise(1), noise(2)
    assert torch.equal(first, noise(1))
    assert len(torch.cat([first, second]).unique(dim=0)) == 96
    assert torch.equal(torch.get_rng_state(), states[0])  # nothing is drawn from the caller's
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


class StopError(Exception):
    pass


class Stopping(subcompress.Listener):
    def epoch(self, progress):
        if progress.epoch == 2:
            raise StopError


@pytest.mark.slow
def test_a_fit_that_was_stopped_goes_on_to_the_same_file(tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.loop.SAVE_EVERY", 0.0)
    whole = packed(three(Noisy), tmp_path, workers=2)
    (tmp_path / "again").mkdir()
    with pytest.raises(StopError):
        packed(three(Noisy), tmp_path / "again", workers=2, listener=Stopping())
    assert packed(three(Noisy), tmp_path / "again", workers=1) == whole


def test_processes_end_with_the_one_that_asked():
    for _ in batches(OnDemand(Blobs(), workers=2), 4):
        break
    next(batches(OnDemand(Blobs(), workers=2), 4))
    assert no_children() is True


class Dying(Blobs):
    def __getitem__(self, i):
        if i == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_data_set_raises_is_the_same_line_with_workers(workers):
    def line(examples, collate=None):
        with pytest.raises(SubcompressError) as error:
            list(batches(OnDemand(examples, collate, workers), 8))
        return str(error.value)

    assert line(Failing()) == "examples cannot be read, or cannot be stacked into a batch: OSError: disk is gone"
    assert line(Blobs(), lambda items: 1 / 0) == (
        "collate must take a list of examples and return (x, y); <lambda> raises ZeroDivisionError: division by zero"
    )
    assert line(Blobs(), lambda items: items) == "collate must return a pair (x, y); it returns list of 8"
    assert line(Blobs(), lambda items: (torch.full((8,), torch.nan), 0)).startswith("an example holds nan or inf")
    assert no_children() is True


# The process that dies leaves its queue as it is, which the garbage collector tells whenever it comes by.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_process_that_dies_or_cannot_send_is_one_line():
    with pytest.raises(SubcompressError, match=r"^a process that reads examples ended[^\n]*give --workers 0[^\n]*$"):
        list(batches(OnDemand(Dying(), workers=1), 8))
    collate = lambda items: (lambda: 0, torch.zeros(8))  # noqa: E731
    with pytest.raises(SubcompressError, match=r"^a batch cannot be sent [^\n]*--workers 0"):
        list(batches(OnDemand(Blobs(), collate, workers=1), 8))
    assert no_children() is True


def test_workers_are_counted():
    with pytest.raises(SubcompressError, match="--workers must be between 0 and 256; got -1"):
        three(Blobs, workers=-1)
    x = torch.zeros(4, 2)
    assert isinstance(three(lambda: Split(x, x), workers=4).train, Split)  # in memory: nothing to read


def test_ctrl_c_ends_all_processes(tmp_path):
    """The whole group hears it, as in a terminal; nobody but the command says a word."""
    (tmp_path / "slow.py").write_text(
        "import os, time, torch\nfrom torch.utils.data import Dataset\n"
        "class Slow(Dataset):\n"
        "    def __len__(self): return 64\n"
        "    def __getitem__(self, i):\n"
        "        time.sleep(0.02 * os.path.exists('run'))\n"  # what is looked at before takes no time
        "        return torch.zeros(4), i % 3\n"
        "def load(): return Slow(), Slow(), Slow()\n"
        "def net(): return torch.nn.Linear(4, 3)\n"
    )
    command = [sys.executable, "-m", "subcompress_cli", "fit", "--model", "slow.py:net", "--data", "slow.py:load"]
    command += ["--d", "8", "--epochs", "500", "--batch-size", "8", "--workers", "2", "-o", "run", "--threads", "1"]
    running = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True)
    watched = psutil.Process(running.pid)
    for _ in range(600):
        if len(children := watched.children()) == 2 and (tmp_path / "run").exists():
            break
        time.sleep(0.05)
    time.sleep(0.3)
    os.killpg(running.pid, signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130, said
    assert "interrupted: run the same command again to continue" in said
    assert "Traceback" not in said
    assert not [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
