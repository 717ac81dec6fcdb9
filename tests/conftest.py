"""Runs and files that many tests share; nothing here trains for more than a few seconds.

The process that hands tests out to others reads this file too, and needs no torch: fixtures import what they use.
"""

from __future__ import annotations

import gc
import os
import pickle
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from torch import Tensor, nn

    import subcompress

    Once = Callable[[str, Callable[[Path], object]], Path]

os.environ.setdefault("SUBCOMPRESS_DEVICE", "cpu")  # on a GPU too, sums have one order and files the same bytes

gc.disable()  # until all tests are collected: what is imported stays, and to look through it again and again takes long

FIRST = (
    *("test_compare.py", "test_texts.py", "test_networks.py", "test_triton.py", "test_documents.py"),
    *("test_unfolding.py", "test_fit.py", "test_goals.py", "test_bytes.py", "test_loaders.py", "test_shards.py"),
    *("test_resume.py", "test_search.py", "test_trained.py"),
)
"""Files that take long begin first, so that no process is left with one while the others have ended."""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """The second of two processes begins with the last file: each compiles half of them for both."""
    report = yield
    if isinstance(collector, pytest.Dir) and os.environ.get("PYTEST_XDIST_WORKER") == "gw1":
        report.result = report.result[::-1]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; tests of a file stay in their order."""
    place = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: (place.get(item.path.name, len(place)), item.path))


def pytest_collection_finish() -> None:
    """From here on garbage is looked for among what tests make alone, and less often than by default."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests cache out of the user's folder."""
    os.environ["SUBCOMPRESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run share, and no other run."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def once(shared: Path) -> Once:
    """(name, make) -> a folder that the first process of this run to ask for it has made, and that all read."""

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name.replace(" ", "-")
        with FileLock(f"{folder}.lock"):
            if not (made := folder.with_suffix(".made")).exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return get


@pytest.fixture(scope="session", autouse=True)
def traces(shared: Path) -> None:
    """What was traced is not traced again."""
    from traces import remembered

    from subcompress.onnx import tracing

    (folder := shared / "traces").mkdir(exist_ok=True)
    tracing._trace = remembered(folder, tracing._trace)


@pytest.fixture(scope="session", autouse=True)
def quick() -> None:
    """A fit times two steps for its estimate, and measures in fewer how far tensors move: tests/subspace/test_moves.py
    and tests/training/test_moves.py hold what measurements find."""
    from subcompress.subspace import measuring
    from subcompress.training import preflight

    measuring.STEPS, measuring.LEAST = 20, 5
    preflight.WARM_UP, preflight.TIMED = 1, 1


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> None:
    """No test cuts the power: files need not have reached the disk, for which each would wait."""
    os.fsync = lambda file: None


@pytest.fixture(scope="session")
def digits() -> subcompress.Data:
    """The embedded data set."""
    import subcompress

    return subcompress.load_data("digits")


@pytest.fixture(scope="session")
def few_digits() -> subcompress.Data:
    """A third of it."""
    import subcompress
    from subcompress.data import Split

    digits = subcompress.load_data("digits")
    parts = [Split(split.x[::3], split.y[::3]) for split in (digits.train, digits.validation, digits.test)]
    return subcompress.Data(*parts, digits.facts)


@pytest.fixture(scope="session")
def small_run(once: Once, digits: subcompress.Data) -> Path:
    """A finished run of LeNet on the digits, with its file beside it."""
    import subcompress
    from subcompress_models import MODELS

    def make(folder: Path) -> None:
        subcompress.fit(MODELS["lenet"](), digits, folder / "run", d=200, epochs=6, batch_size=32, threads=1)
        subcompress.pack(folder / "run", folder / "net.safetensors")

    return once("lenet", make) / "run"


@pytest.fixture(scope="session")
def small_file(small_run: Path) -> Path:
    """The file of that run."""
    return small_run.parent / "net.safetensors"


@pytest.fixture(scope="session")
def fitted(once: Once) -> Callable[[str], tuple[subcompress.Fit, Path, nn.Module]]:
    """Name of a network -> (fit, file, module as it was before), each fitted once."""
    import networks
    import torch

    import subcompress

    def get(name: str) -> tuple[subcompress.Fit, Path, nn.Module]:
        case = networks.CASES[name]
        torch.manual_seed(3)
        module = case.make()

        def make(folder: Path) -> None:
            options = {"d": 100, "epochs": 8, "batch_size": 32, "threads": 1, **case.options}
            found = subcompress.fit(module, case.data(), folder / "run", **options)
            (folder / "fit").write_bytes(pickle.dumps(found))
            subcompress.pack(folder / "run", folder / "net.safetensors")

        folder = once(name, make)
        return pickle.loads((folder / "fit").read_bytes()), folder / "net.safetensors", module

    return get


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """A batch norm network after 40 steps: the base of these tests."""
    from trained import state

    return state()
