"""A fit on a base holds what does not move once: the network's own memory, in each of its stages."""

from __future__ import annotations

import gc

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from trained import Notes

import subcompress
from subcompress import Split, SubcompressError, Subspace
from subcompress.base import attach_base, open_base
from subcompress.subspace.standing import Copies, standing
from subcompress.subspace.starts import recognize
from subcompress.training import loop
from subcompress.training.loop import TrainOptions, train
from subcompress.training.tasks import Task

ROWS, WIDTH = 997, 12

PLACES: set[int] = set()
"""Where the table lay in forward passes."""

OPTIONS = {"d": 12, "epochs": 1, "batch_size": 16, "threads": 1, "bits": 4}


class Net(nn.Module):
    """A table that does not move, a norm and a head that do. bound: of the table's values, which a pass cuts where
    LATE is not set."""

    LATE = False

    def __init__(self, bound: float | None = None) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(ROWS, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        PLACES.add(self.table.weight.data_ptr())
        if self.bound is not None and not Net.LATE:
            self.table.weight.data.clamp_(-self.bound, self.bound)
        return self.head(self.norm(self.table(x).mean(1)))


def data() -> subcompress.Data:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randint(ROWS, (96, 5), generator=drawn)
    split = Split(x, x[:, 0] % 3)
    return subcompress.Data(split, split, split)


def net(seed: int = 0, bound: float | None = None) -> Net:
    torch.manual_seed(seed)
    return Net(bound)


@pytest.fixture
def base(tmp_path):
    safetensors.torch.save_file(net().state_dict(), tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def is_table(t: object) -> bool:
    return isinstance(t, Tensor) and t.shape == (ROWS, WIDTH)


def tables() -> int:
    """Places in memory of tables that are alive."""
    found = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter) and is_table(t)]
    return len({t.untyped_storage().data_ptr() for t in found})


class Counting(Notes):
    """Counts the tables while a fit is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[int] = []

    def epoch(self, progress):
        self.alive.append(tables())

    def note(self, text):
        super().note(text)
        if text.startswith("D = "):
            self.alive.append(tables())


@pytest.mark.parametrize("seed", [0, 1])
def test_what_does_not_move_is_held_once(base, tmp_path, monkeypatch, seed):
    """As the network's own memory where that has the values of the base, else beside it."""
    given, copies, heard = net(seed), [], Counting()
    before, own = given.table.weight.detach().clone(), given.table.weight.data_ptr()

    def cloned(t: Tensor, clone=Tensor.clone, **options):
        copies.extend([t] if is_table(t) else [])
        return clone(t, **options)

    PLACES.clear()
    others = tables()
    with monkeypatch.context() as m:
        m.setattr(Tensor, "clone", cloned)
        subcompress.fit(given, data(), tmp_path / "run", base=base, listener=heard, **OPTIONS)
    assert len(PLACES) == 1
    assert (own in PLACES) == (seed == 0)
    assert len(copies) == seed
    assert [n - others for n in heard.alive] == [seed] * 2
    assert torch.equal(given.table.weight, before)
    loaded = subcompress.load(tmp_path / "run" / "record.safetensors", net(1), base=base)
    assert torch.equal(loaded.table.weight, net().table.weight)


def test_a_table_that_a_forward_pass_changes_is_not_shared(base, tmp_path):
    given = net(0, bound=1.0)
    before = given.table.weight.detach().clone()
    on_base = attach_base(open_base(base), given)
    model = standing(given, on_base)
    known = recognize(model, base=on_base)
    copies = Copies(model, known.layout, known.of(), on_base, "cpu")
    assert copies.still == {"table.weight"}
    copies.to_look_at()(torch.zeros(1, 1, dtype=torch.long))
    assert copies.restored() == ["table.weight"]
    assert torch.equal(given.table.weight, before)
    assert not copies.still
    copies.to_look_at()(torch.zeros(1, 1, dtype=torch.long))
    assert copies.restored() == []
    assert torch.equal(given.table.weight, before)


class Late(Notes):
    """Lets a pass change the table from the first training on."""

    def run(self, title, epochs):
        Net.LATE = False


def test_a_table_that_is_changed_late_is_refused_and_given_back(base, tmp_path, monkeypatch):
    monkeypatch.setattr(Net, "LATE", True)
    given = net(0, bound=1.0)
    before = given.table.weight.detach().clone()
    with pytest.raises(SubcompressError, match=r"^the forward pass changed table.weight"):
        subcompress.fit(given, data(), tmp_path / "run", base=base, listener=Late(), **OPTIONS)
    assert torch.equal(given.table.weight, before)


class Former:
    """A checkpoint that says what is expected of it."""

    def load(self, expected):
        self.expected = expected

    def save(self, tensors, meta):
        self.saved = set(tensors)


def test_a_checkpoint_holds_what_changes_and_may_hold_the_rest(base, monkeypatch):
    """Those of former versions do."""
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    sub, held = Subspace(net(), Subspace.of(net(), 12, base=base).plan, still={"table.weight"}), Former()
    train(sub, data(), Task.of(), TrainOptions(1, 0.01, 16), checkpoint=held)
    assert "module.z" in held.saved
    assert "module.table.weight" not in held.saved
    assert not held.expected["module.table.weight"].needed
