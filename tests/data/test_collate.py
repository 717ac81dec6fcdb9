"""Batches as people have them: graphs, collate functions, labels of any kind, iterable data sets."""

import pytest
import torch
from made_data import OPTIONS, Blobs, Endless, net, no_children, packed, three
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

import subcompress
from subcompress import Data, Split, SubcompressError
from subcompress.data.reading import OnDemand
from subcompress.data.splits import batches, size
from subcompress.data.texts import Ragged
from subcompress.training.preflight import check_first_batch
from subcompress.training.tasks import Task, evaluate

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
    with pytest.raises(SubcompressError, match=r"labels must be between 0 and 2, .* the train split has 156"):
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
        with pytest.raises(SubcompressError, match=r"the same shape; got \(48, 3\) and \(48,\)"):
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
        (lambda: Passing(items, 7), "the train split has a length of 7 but yields 5"),
        (lambda: Passing(items, 3), "the train split has a length of 3 but yields more"),
        (lambda: Passing(broken(), 3), "the train split cannot be read: OSError: disk is gone"),
        (lambda: Passing([], 0), "the train split is empty"),
        (Endless, r"the train split has no length and may never end \(Endless\)"),
    ):
        with pytest.raises(SubcompressError, match=words):
            three(make)
    monkeypatch.setattr("subcompress.data.reading.MOST_BYTES", 40)
    with pytest.raises(SubcompressError, match=r"the train split is iterable and takes more .* read into memory"):
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
