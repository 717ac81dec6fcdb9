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
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
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
from subcompress.data.texts import Ragged
from subcompress.training.preflight import check_first_batch
from subcompress.training.tasks import Task, evaluate
from subcompress_cli.loading import data_of

OPTIONS = {"d": 8, "epochs": 3, "batch_size": 8, "threads": 1}


class Blobs(Dataset):
    """Points (4,), one by one: which of three coordinates is the largest?"""

    def __init__(self, n=48, seed=0):
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.x[i, :3].argmax())


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


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(4), 0


class Lying(Dataset):
    """torch's own default: a Dataset without a length."""

    def __getitem__(self, i):
        return torch.zeros(4), 0


def net():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def three(make, **options):
    return Data(*[make() for _ in range(3)], **options)


def packed(data, folder, module=None, **options):
    """The file of a fit."""
    subcompress.fit(module or net(), data, folder / "run", **{**OPTIONS, **options})
    subcompress.pack(folder / "run", folder / "net.safetensors")
    return (folder / "net.safetensors").read_bytes()


def no_children():
    """Wait for the processes that read: none stays."""
    for _ in range(50):
        if not (left := psutil.Process().children()):
            return True
        time.sleep(0.1)
    return left


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
    words = r"worker_init_fn; it raises ValueError: no such disk: mend it, or give --workers 0"
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
        (lambda: DataLoader(Endless()), r"the train split's streams \(Endless\)"),
        (lambda: DataLoader(Lying(), sampler=[0]), r"the train split's streams \(Lying\)"),
        (lambda: DataLoader(Blobs(), batch_size=None), "has batch_size=None"),
        (
            lambda: DataLoader(Blobs(), sampler=WeightedRandomSampler([1.0] * 48, 48)),
            "with WeightedRandomSampler: give",
        ),
        (
            lambda: DataLoader(Blobs(), sampler=RandomSampler(Blobs(), num_samples=16)),
            "the RandomSampler of the train split's DataLoader draws 16 of 48 without replacement: give a torch Subset",
        ),
        (
            lambda: DataLoader(Blobs(), sampler=RandomSampler(Blobs(), replacement=True)),
            "draws 48 of 48 with replacement: give a torch Subset",
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

    assert line(Failing()) == "a data set raises, or its examples do not stack: OSError: disk is gone"
    assert line(Blobs(), lambda items: 1 / 0) == (
        "collate takes a list of examples and returns (x, y); <lambda> raises ZeroDivisionError: division by zero"
    )
    assert (
        line(Blobs(), lambda items: items) == "a batch is a pair (x, y); collate returns list of 8: return two things"
    )
    assert line(Blobs(), lambda items: (torch.full((8,), torch.nan), 0)).startswith("examples are finite numbers")
    assert no_children() is True


# The process that dies leaves its queue as it is, which the garbage collector tells whenever it comes by.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_process_that_dies_or_cannot_send_is_one_line():
    with pytest.raises(SubcompressError, match=r"^a process that reads examples ended[^\n]*give --workers 0[^\n]*$"):
        list(batches(OnDemand(Dying(), workers=1), 8))
    collate = lambda items: (lambda: 0, torch.zeros(8))  # noqa: E731
    with pytest.raises(SubcompressError, match=r"^a batch is sent [^\n]* this one cannot be[^\n]*--workers 0"):
        list(batches(OnDemand(Blobs(), collate, workers=1), 8))
    assert no_children() is True


def test_workers_are_counted():
    with pytest.raises(SubcompressError, match="--workers is between 0 and 256; given -1"):
        three(Blobs, workers=-1)
    x = torch.zeros(4, 2)
    assert isinstance(three(lambda: Split(x, x), workers=4).train, Split)  # in memory: nothing to read


def test_ctrl_c_ends_all_processes(tmp_path):
    """The whole group hears it, as in a terminal; nobody but the command says a word."""
    (tmp_path / "slow.py").write_text(
        "import time, torch\nfrom torch.utils.data import Dataset\n"
        "class Slow(Dataset):\n"
        "    def __len__(self): return 64\n"
        "    def __getitem__(self, i):\n"
        "        time.sleep(0.02)\n        return torch.zeros(4), i % 3\n"
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
    assert "interrupted: the same command goes on where it was" in said
    assert "Traceback" not in said
    assert not [p for p in children if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


# --- graphs and ragged examples ---


class Graphs:
    """A batch of graphs, as graph libraries have them: one object."""

    def __init__(self, features, graph):
        self.features, self.graph, self.device = features, graph, None

    def to(self, device):
        found = Graphs(self.features.to(device), self.graph.to(device))
        found.device = device
        return found


class GraphData(Dataset):
    """Graphs of 2 to 5 nodes; the label is a node's or the graph's."""

    nodes = False

    def __len__(self):
        return 48

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        features = torch.randn(2 + i % 4, 4, generator=g)
        return features, features[:, :3].argmax(1) if self.nodes else int(features.sum(0)[:3].argmax())

    def collate(self, items):
        graph = torch.cat([torch.full((len(f),), i) for i, (f, _) in enumerate(items)])
        y = [y for _, y in items]
        return Graphs(torch.cat([f for f, _ in items]), graph), torch.cat(y) if self.nodes else torch.tensor(y)


class NodeData(GraphData):
    nodes = True


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, batch):
        assert batch.device is not None  # it was moved
        pooled = torch.zeros(int(batch.graph.max()) + 1, 4).index_add(0, batch.graph, batch.features)
        return self.layer(pooled)


class NodeNet(GraphNet):
    def forward(self, batch):
        return self.layer(batch.features)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_graphs_are_fitted_as_one_object(tmp_path, workers):
    data = three(GraphData, workers=workers)
    assert not data.facts.input_shape
    found = subcompress.fit(GraphNet(), data, tmp_path / "run", **{**OPTIONS, "epochs": 3 if workers else 30})
    assert found.validation > (0 if workers else 0.6)
    assert size(data.validation) == 48
    assert subcompress.pack(tmp_path / "run", tmp_path / "net.safetensors") < 200
    assert no_children() is True


def test_nodes_are_many_and_examples_are_counted(tmp_path):
    """A metric of the nodes is a mean over graphs batch by batch, weighed by graphs, whatever the nodes are."""
    data, module = three(NodeData), NodeNet()
    check_first_batch(module, data, Task.of(), 8, "cpu")
    each = [evaluate(module, Subset(NodeData(), part), Task.of()) for part in (range(32), range(32, 48))]
    whole = evaluate(module, data.validation, Task.of(), batch_size=32)
    assert whole == pytest.approx((32 * each[0] + 16 * each[1]) / 48)
    rows = evaluate(module, data.validation, Task.of(metric=lambda outputs, y: len(y)), batch_size=32)
    assert rows == sum(2 + i % 4 for i in range(48))


def test_a_part_of_a_data_set_keeps_its_collate():
    data = Data(*torch.utils.data.random_split(GraphData(), [30, 10, 8]))
    assert isinstance(next(batches(data.train, 5))[0], Graphs)
    assert isinstance(next(batches(Subset(GraphData(), range(4)), 2))[0], Graphs)


def padded(items):
    """Sequences of different lengths, padded, with a mask: inputs by name."""
    x = nn.utils.rnn.pad_sequence([f for f, _ in items], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(f)) for f, _ in items], batch_first=True)
    return {"x": x, "mask": mask}, torch.tensor([y for _, y in items])


class Sequences(Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, i):
        return GraphData()[i]


class SequenceNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, mask):
        return self.layer((x * mask[..., None]).sum(1))


def test_collate_as_an_argument_or_of_a_loader(tmp_path):
    given = packed(three(Sequences, collate=padded), tmp_path, SequenceNet())
    loaders = Data(*[DataLoader(Sequences(), batch_size=3, collate_fn=padded)] * 3)
    assert packed(loaders, tmp_path, SequenceNet(), restart=True) != b""
    torch.manual_seed(5)
    a = next(batches(loaders.train, 5))
    b = next(batches(three(Sequences, collate=padded).train, 5))
    assert torch.equal(a[0]["x"], b[0]["x"])
    assert given
    other = three(Sequences, collate=lambda items: padded(items))
    assert other.digest() != three(Sequences, collate=padded).digest()


def test_a_collate_is_asked_also_for_tensors_and_texts():
    x = torch.randn(8, 4)
    data = three(lambda: TensorDataset(x, torch.arange(8)), collate=torch.utils.data.default_collate)
    assert not isinstance(data.train, Split)
    texts = [({"input_ids": torch.ones(3 + i, dtype=torch.long)}, 0) for i in range(4)]
    assert isinstance(three(lambda: Listed(texts)).train, Ragged)
    assert not isinstance(three(lambda: Listed(texts), collate=lambda items: (0, 0)).train, Ragged)


class Listed(list, Dataset):
    pass


def test_a_batch_that_holds_its_y_is_a_pair():
    """As those of PyTorch Geometric."""

    class Batch(Graphs):
        y = torch.arange(3)

    found = next(batches(OnDemand(Listed([1, 2, 3]), lambda items: Batch(torch.zeros(3), torch.zeros(3))), 3))
    assert isinstance(found[0], Graphs)
    assert found[1].tolist() == [0, 1, 2]


def test_a_collate_that_raises_is_one_line_before_anything_is_written(tmp_path):
    def broken(items):
        raise KeyError("edges")

    with pytest.raises(SubcompressError, match=r"^the train split cannot be read: collate .* broken raises KeyError"):
        subcompress.fit(net(), three(Blobs, collate=broken), tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


# --- labels ---


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y[:, None],
        lambda y: y.to(torch.uint8),
        lambda y: y.to(torch.int16)[:, None],
        lambda y: y.int(),
    ],
)
def test_labels_of_any_integers_and_of_one_column(tmp_path, change):
    x = Blobs().x
    y = x[:, :3].argmax(1)
    plain = three(lambda: Split(x, y))
    given = three(lambda: Split(x, change(y)))
    prepared = Task.of().prepare_labels(given)
    assert torch.equal(prepared.train.y, y)
    assert prepared.train.y.dtype == torch.int64
    assert given.train.y.dtype == change(y).dtype  # theirs stays as it was
    assert Task.of().guess(prepared.train) == Task.of().guess(plain.train)
    for metric in (None, "loss"):
        task = Task.of(metric=metric)
        assert evaluate(net(), given.test, task) == evaluate(net(), plain.test, task)
        assert evaluate(net(), OnDemand(TensorDataset(x, change(y))), task) == evaluate(net(), plain.test, task)
    found = subcompress.fit(net(), given, tmp_path / "run", **OPTIONS)
    assert 0 < found.test <= 1


def test_labels_of_a_loss_of_ones_own_stay(tmp_path):
    x = Blobs().x
    data = three(lambda: Split(x, x[:, :3].argmax(1)[:, None]))
    assert Task.of(lambda module, batch: 0).prepare_labels(data) is data
    assert Task.of("mse").prepare_labels(data) is data


def test_labels_out_of_range_are_named_also_as_bytes():
    x = torch.zeros(8, 4)
    data = three(lambda: Split(x, torch.full((8,), 156, dtype=torch.uint8)))
    with pytest.raises(SubcompressError, match=r"labels are between 0 and 2, .* the train split has 156"):
        check_first_batch(net(), data, Task.of(), 8, "cpu")


def test_class_probabilities(tmp_path):
    x = Blobs().x
    y = x[:, :3].softmax(1)
    soft, hard = Split(x, y), Split(x, y.argmax(1))
    assert evaluate(net(), soft, Task.of()) == evaluate(net(), hard, Task.of())
    assert Task.of().guess(soft) is None
    truth = nn.functional.cross_entropy(net()(x), y).detach()
    assert evaluate(net(), soft, Task.of(metric="loss")) == pytest.approx(float(truth))
    found = subcompress.fit(net(), three(lambda: soft), tmp_path / "run", **OPTIONS)
    assert 0 < found.test <= 1


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32, torch.uint8])
def test_several_labels_an_example(tmp_path, kind):
    x = Blobs().x
    y = (x[:, :3] > 0).to(kind)
    data = three(lambda: Split(x, y))
    assert Task.of("bce").prepare_labels(data).train.y.dtype == torch.float32
    truth = nn.functional.binary_cross_entropy_with_logits(net()(x), y.float()).detach()
    assert evaluate(net(), data.test, Task.of("bce", "loss")) == pytest.approx(float(truth))
    share = ((net()(x) > 0) == (y > 0)).double().mean()
    assert evaluate(net(), OnDemand(TensorDataset(x, y)), Task.of("bce")) == pytest.approx(float(share))
    found = subcompress.fit(net(), data, tmp_path / "run", loss="bce", **OPTIONS)
    assert 0 < found.test <= 1


@pytest.mark.parametrize("loss", ["bce", "mse", "l1"])
def test_one_column_and_none_mean_the_same(loss):
    torch.manual_seed(0)
    x, module = Blobs().x, nn.Linear(4, 1)
    y = (x[:, 0] > 0).float()
    for metric in (None, "loss"):
        task = Task.of(loss, metric)
        wanted = evaluate(module, Split(x, y[:, None]), task)
        assert evaluate(module, Split(x, y), task) == wanted
        flat = nn.Sequential(module, nn.Flatten(0))
        assert evaluate(flat, Split(x, y[:, None]), task) == wanted
        with pytest.raises(SubcompressError, match=r"one shape; given \(48, 3\) and \(48,\)"):
            evaluate(net(), Split(x, y), task)


# --- data sets that only go through their examples ---


class Passing(IterableDataset):
    """Examples of a list, and a length of its own."""

    def __init__(self, items, length=None):
        self.items, self.length, self.passes = items, len(items) if length is None else length, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        self.passes += 1
        return iter(self.items)


def test_an_iterable_data_set_with_a_length_is_read_once():
    items = [(torch.full((4,), float(i)), i % 3) for i in range(40)]
    streams = [Passing(items) for _ in range(3)]
    data = Data(*streams)
    assert [s.passes for s in streams] == [1, 1, 1]
    assert torch.equal(data.train.x, torch.stack([x for x, _ in items]))
    assert data.train.y.tolist() == [y for _, y in items]
    assert Data(*[DataLoader(Passing(items), 4)] * 3).digest() == data.digest()
    own = Data(*[DataLoader(Passing(items), 4, collate_fn=halves)] * 3)
    assert next(batches(own.train, 2))[0].tolist() == [[0.0] * 4, [0.5] * 4]
    words = Data(*[Passing([({"input_ids": [1] * (i + 1)}, i % 2) for i in range(5)])] * 3)
    assert words.train.lengths.tolist() == [1, 2, 3, 4, 5]


def halves(items):
    return torch.stack([x for x, _ in items]) / 2, torch.tensor([y for _, y in items])


def test_an_iterable_data_set_that_is_none_is_named(monkeypatch):
    items = [(torch.zeros(4), 0)] * 5

    def broken():
        yield items[0]
        raise OSError("disk is gone")

    for make, words in (
        (lambda: Passing(items, 7), "the train split says 7 and yields 5"),
        (lambda: Passing(items, 3), "the train split says 3 and yields more"),
        (lambda: Passing(broken(), 3), "the train split cannot be read: OSError: disk is gone"),
        (lambda: Passing([], 0), "the train split is empty"),
        (Endless, "an IterableDataset with a length; the train split is Endless, perhaps without an end"),
    ):
        with pytest.raises(SubcompressError, match=words):
            three(make)
    monkeypatch.setattr("subcompress.data.reading.MOST_BYTES", 40)
    with pytest.raises(SubcompressError, match=r"read into memory, up to .*the train split is more"):
        three(lambda: Passing(items))


def test_python_numbers_are_targets():
    """Collated, they are float64, which no loss of float32 outputs takes."""
    items = [(torch.full((4,), float(i)), i / 2) for i in range(8)]
    split = Data(*[Passing(items)] * 3).train
    assert split.y.dtype == torch.float64
    batch = next(batches(split, 8))
    Task.of("mse").loss_of(nn.Linear(4, 1), batch).backward()
    rows = torch.eye(3, dtype=torch.float64)[torch.arange(8) % 3]
    Task.of().loss_of(net(), (batch[0], rows)).backward()
