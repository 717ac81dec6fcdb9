"""One training over several workers: the same file, byte for byte, for any number of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from click.testing import CliRunner
from commands import cli
from documents import blocks
from torch import Tensor, nn
from torch.distributed.run import get_args_parser

import subcompress
from subcompress import Data, Machine, Recipe, SubcompressError
from subcompress.data import DATA, Split
from subcompress.data.splits import batches
from subcompress.subspace import measuring
from subcompress.training import run
from subcompress.training.preparing import divided
from subcompress.training.sharding import Step
from subcompress_cli import main

HERE = Path(__file__)
SMALL = {"batch_size": 32, "shards": 4, "threads": 1, "device": "cpu"}


def mixed() -> nn.Module:
    """Running statistics, a count of batches, and dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(150, 4)
    )


class Failing(networks.Noisy):
    """A data set that raises at one example."""

    def __getitem__(self, i: int) -> Any:
        if i == 17:
            raise OSError("no such picture")
        return self.data[i]


def failing() -> Data:
    data = networks.blobs()
    return Data(Failing(data.train), data.validation, data.test)


def ranked() -> Data:
    """Other data in each worker."""
    data = networks.blobs()
    data.train.x.add_(int(os.environ["RANK"]))
    return data


MIXED = f"--model {HERE}:mixed --data {Path(networks.__file__)}:blobs --d 40 --batch-size 32"
LENET = "--model lenet --data digits --d 40 --steps 4 --batch-size 32"


# --- workers, for tests: processes that are forked from this one ---


@dataclass(frozen=True)
class Ended:
    """How a worker ended: its status, negative for a signal, and what it printed."""

    status: int
    stdout: str = ""
    stderr: str = ""


Dies = tuple[int, int, signal.Signals]
"""A rank, the step in which it sends itself a signal, and which."""


def _work(rank: int, size: int, port: int, commands: list[str], dies: Dies | None, pipe: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    import subcompress.training.loop as loop

    loop.SAVE_EVERY = -1.0
    if dies is not None and dies[0] == rank:
        _die_in(*dies[1:])
    for command in commands:
        found = CliRunner().invoke(main, command.split())
        fault = found.exception if not isinstance(found.exception, SystemExit) else None
        pipe.send(Ended(found.exit_code, found.stdout, found.stderr + (repr(fault) if fault else "")))


def _die_in(step: int, number: signal.Signals) -> None:
    run_step = Step.run

    def run(self: Step, at: int, work: Any) -> Tensor:
        if at == step:
            os.kill(os.getpid(), number)
        return run_step(self, at, work)

    Step.run = run  # type: ignore[method-assign]


def shared(size: int, *commands: str, dies: Dies | None = None) -> list[list[Ended]]:
    """How the workers of each command ended, by rank."""
    context = multiprocessing.get_context("fork")  # torch is imported here, which takes seconds elsewhere
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports the rest of torch, once for all of them
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        context.Process(target=_work, args=(rank, size, port, list(commands), dies, pipes[rank][1]))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    until, found = time.monotonic() + 120, []
    for process in processes[:1] if dies and dies[2] == signal.SIGSTOP else processes:
        process.join(max(0.0, until - time.monotonic()))
    for (reader, writer), process in zip(pipes, processes, strict=True):
        if process.is_alive():
            process.kill()
            process.join()
        writer.close()
        ended = list(_received(reader))
        found.append(ended or [Ended(process.exitcode or 0)])
    return found


def _received(reader: Any) -> Iterator[Ended]:
    while reader.poll():
        try:
            yield reader.recv()
        except EOFError:
            return


def record(folder: Path) -> bytes:
    return (folder / run.RECORD).read_bytes()


@pytest.fixture(autouse=True)
def cheap(monkeypatch, digits):
    """A measurement of few steps before each fit, and few digits; workers that are forked have the same."""
    monkeypatch.setattr(measuring, "STEPS", 4)
    monkeypatch.setattr(measuring, "LEAST", 4)
    parts = [Split(split.x[::8], split.y[::8]) for split in (digits.train, digits.validation, digits.test)]
    monkeypatch.setitem(DATA, "digits", lambda folder=None: Data(*parts, digits.facts))


# --- recipes, commands, folders ---


def test_shards_divide_the_batch(tmp_path):
    found = cli("fit", *MIXED.split(), "--shards", 5, "-o", tmp_path / "run")
    assert found.exit_code == 1
    assert found.stderr.strip().endswith(
        "--shards must divide --batch-size, here 32, to cut a batch into equal parts; got 5"
    )
    assert (
        cli("fit", *MIXED.split(), "--shards", 0, "-o", tmp_path / "run").stderr.strip().endswith("at least 1; got 0")
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("size", "shards"), [(3, 4), (2, 1), (4, 2)])
def test_a_number_of_workers_that_does_not_share_evenly_is_refused(tmp_path, monkeypatch, size, shards):
    monkeypatch.setenv("WORLD_SIZE", str(size))
    command = ["fit", *MIXED.split(), "--shards", shards, "-o", tmp_path / "run"]
    monkeypatch.setenv("RANK", "0")
    first = cli(*command)
    monkeypatch.setenv("RANK", "1")
    second = cli(*command)
    words = f"{size} workers cannot share --shards {shards} evenly: give a multiple of {size}, or start another number"
    assert words in first.stderr and len(first.stderr.strip().splitlines()) == 1
    assert (first.exit_code, second.exit_code, second.output) == (1, 1, "")
    assert not (tmp_path / "run").exists()


def test_a_silence_that_is_none_is_refused(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "SUBCOMPRESS_WORKER_TIMEOUT": "soon"}.items():
        monkeypatch.setenv(name, value)
    found = cli("fit", *MIXED.split(), "--shards", 4, "-o", tmp_path / "run")
    assert found.stderr == "error: SUBCOMPRESS_WORKER_TIMEOUT must be between 15 and 86400 seconds; got soon\n"


def test_shards_are_part_of_the_recipe(tmp_path):
    """A command of one shard is that of folders made before there were shards."""
    data = networks.blobs()
    subcompress.fit(mixed, data, tmp_path / "one", d=20, steps=2, **SMALL | {"shards": 1})
    found = subcompress.fit(mixed, data, tmp_path / "four", d=20, steps=2, **SMALL | {"threads": None})
    held = [json.loads((tmp_path / name / run.COMMAND).read_text()) for name in ("one", "four")]
    assert "shards" not in held[0]["recipe"]
    assert (held[1]["recipe"]["shards"], held[1]["machine"]["threads"]) == (4, 1)
    again = subcompress.fit(mixed, data, tmp_path / "four", recipe=tmp_path / "four" / "recipe.toml")
    assert again.seconds == found.seconds  # it is there already
    with pytest.raises(SubcompressError, match="shards must be a whole number"):
        (tmp_path / "r.toml").write_text("[recipe]\nshards = 1.5\n")
        subcompress.fit(mixed, data, tmp_path / "x", recipe=tmp_path / "r.toml")
    assert Recipe().shards == 1


def test_what_a_data_set_draws_does_not_depend_on_who_reads_it():
    split, order = networks.Noisy(networks.blobs().train), torch.arange(32)
    whole = [x["image"] for x, _ in batches(split, 4, order=order, seed=3)]
    mine = order.view(4, 2, 4)[:, 1].reshape(-1)
    half = [x["image"] for x, _ in batches(split, 4, order=mine, seed=3, numbers=[1, 3, 5, 7])]
    assert torch.equal(torch.stack(half), torch.stack(whole[1::2]))


def test_the_commands_of_the_page_can_be_given():
    found = [shlex.split(line) for block in blocks("docs/guides/many-machines.md", "") for line in block.lines]
    found = [words for words in found if words[0] == "torchrun"]
    assert len(found) == 3
    for words in found:
        at = words.index("--")
        torchrun = get_args_parser().parse_args(words[1:])
        assert (torchrun.module, torchrun.training_script) == (True, "subcompress")
        context = main.get_command(None, "fit").make_context("fit", words[at + 3 :])
        assert context.params["shards"] % (int(torchrun.nproc_per_node) * int(torchrun.nnodes.split(":")[0])) == 0


# --- several workers ---


def test_two_workers_make_the_file_of_one(tmp_path):
    """With running statistics, dropout, augmentation, prices and a budget."""
    more = "--augment shift --rate 1e-4 --optimizer eigen --epochs 1"
    commands = [
        f"fit {MIXED} {more}",
        f"fit {MIXED} --bytes 300 --seeds 1 --epochs 1".replace("--d 40", ""),
    ]
    commands = [f"{c} --shards 4 --device cpu -o {tmp_path}/NAME{i}" for i, c in enumerate(commands)]
    first, second = shared(2, *(c.replace("NAME", "two") for c in commands))
    for i, command in enumerate(commands):
        alone = cli(*command.replace("NAME", "one").split())
        assert first[i].status == second[i].status == alone.exit_code  # 1 where nothing was learned so soon
        assert record(tmp_path / f"two{i}") == record(tmp_path / f"one{i}")
        assert second[i].stdout == second[i].stderr == ""
    assert re.search(r"4 shards per batch, 2 workers: a step exchanges \d+ bytes and a header of \d+", first[0].stderr)
    assert "4 shards per batch, 1 worker: a step exchanges" in alone.stderr


def test_a_worker_that_is_killed_ends_the_others_and_loses_nothing(tmp_path):
    command = f"fit {MIXED} --epochs 2 --shards 4 --device cpu -o {tmp_path}/"
    first, second = shared(2, command + "killed", dies=(1, 7, signal.SIGKILL))
    assert second == [Ended(-signal.SIGKILL)]
    lines = [line for line in first[0].stderr.splitlines() if line.startswith("error:")]
    assert first[0].status == 1 and len(lines) == 1 and "a worker of this training ended" in lines[0]
    assert any((tmp_path / "killed" / run.CHECKPOINTS).iterdir())
    assert cli(*(command + "killed").split()).exit_code == 0
    assert cli(*(command + "whole").split()).exit_code == 0
    assert record(tmp_path / "killed") == record(tmp_path / "whole")


def test_what_one_worker_meets_is_told_once(tmp_path):
    command = f"fit {MIXED} --epochs 1 --shards 4 -o {tmp_path}/run".replace(
        f"{Path(networks.__file__)}:blobs", f"{HERE}:failing"
    )
    first, second = shared(2, command)
    assert (first[0].status, second[0].status) == (1, 1)
    assert "error: " in first[0].stderr and "OSError: no such picture" in first[0].stderr.splitlines()[-1]
    assert second[0].stderr == ""


def test_a_training_that_dies_dies_in_all_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("subcompress.training.judging.WINDOW", 5)
    first, second = shared(2, f"fit {MIXED} --epochs 2 --lr 1e5 --shards 4 --device cpu -o {tmp_path}/run")
    assert (first[0].status, second[0].status, second[0].stderr) == (1, 1, "")
    assert "error: the training failed twice, at lr 1e+05 and 4e+04" in first[0].stderr


def test_jobs_are_of_one_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SubcompressError, match="--jobs cannot be combined with torchrun, which started 2 workers"):
        divided(Machine(jobs=2))


@pytest.mark.slow
def test_one_two_and_four_workers(tmp_path):
    more = "--epochs 3 --shards 4 --device cpu -o"
    for i, options in enumerate((f"{LENET} --shards 4 -o", f"{MIXED} {more}")):
        for size in (1, 2, 4):
            ended = shared(size, f"fit {options} {tmp_path}/{i}-{size}")
            assert all(e[0].status == 0 for e in ended), ended
        assert record(tmp_path / f"{i}-1") == record(tmp_path / f"{i}-2") == record(tmp_path / f"{i}-4")


@pytest.mark.slow
def test_workers_killed_at_several_moments(tmp_path):
    """Either of them, at each third step; then others go on, as many as there are."""
    command = f"fit {MIXED} --epochs 3 --shards 4 --device cpu -o {tmp_path}/"
    assert shared(1, command + "whole")[0][0].status == 0
    for step in range(0, 18, 3):
        rank, then, folder = step // 3 % 2, (1, 2, 4)[step // 3 % 3], f"killed{step}"
        ended = shared(2, command + folder, dies=(rank, step, signal.SIGKILL))
        assert ended[rank] == [Ended(-signal.SIGKILL)]
        assert ended[1 - rank][0].status == 1
        assert [e[0].status for e in shared(then, command + folder)] == [0] * then
        assert record(tmp_path / folder) == record(tmp_path / "whole")


@pytest.mark.slow
def test_a_worker_that_is_silent_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBCOMPRESS_WORKER_TIMEOUT", "15")
    command = f"fit {MIXED} --epochs 2 --shards 4 --device cpu -o {tmp_path}/run"
    first, _ = shared(2, command, dies=(1, 7, signal.SIGSTOP))
    assert first[0].status == 1 and "error: a worker of this training ended, or does not answer" in first[0].stderr


def test_workers_with_other_data_are_refused(tmp_path):
    """They would come to other coordinates, or to none."""
    command = f"fit {MIXED} --epochs 1 --shards 4 --device cpu -o {tmp_path}/run"
    command = command.replace(f"{Path(networks.__file__)}:blobs", f"{HERE}:ranked")
    first, second = shared(2, command)
    assert "error: all workers of a training need the same network, code and data; that of worker 1" in first[0].stderr
    assert (first[0].status, second[0].status, second[0].stderr) == (1, 1, "")


@pytest.mark.slow
def test_a_search_of_two_workers(tmp_path):
    command = f"fit {MIXED} --max-drop 0.05 --seeds 2 --epochs 4 --max-fits 6 --shards 4 --device cpu -o {tmp_path}/"
    command = command.replace("--d 40", "")
    ended = shared(2, command + "two")
    alone = cli(*(command + "one").split())
    assert [e[0].status for e in ended] == [alone.exit_code] * 2, ended[0][0].stderr
    assert record(tmp_path / "two") == record(tmp_path / "one")
