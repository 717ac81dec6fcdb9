"""Commands that gave a file once give the same file now: a change of the code must not change results in silence.

Training depends on the processor's order of sums, so each record is of a kind of processor, told by what plain torch
computes on it. `python tests/test_recorded.py` records this processor; do so only where a change of results is meant.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from subcompress.subspace import measuring
from subcompress_cli import main

RECORDED = Path(__file__).with_name("recorded.json")

MEASURED = (100, 20)
"""Steps of the measurement of moves: `measuring.STEPS` and `measuring.LEAST`."""

COMMANDS = {
    "coordinates": "fit --model lenet --data digits --d 60 --epochs 2 --batch-size 64",
    "scattered": "fit --model mlp --data digits --d 40 --operator scattered --bits 3 --steps 30 --batch-size 64",
    "eigen": "fit --model conv3-4-6-8 --data digits --d 50 --optimizer eigen --epochs 2 --batch-size 64",
    "bytes": "fit --model conv3-4-6-8 --data digits --bytes 200 --seeds 1 --epochs 2 --batch-size 64",
}


@cache
def processor() -> str:
    """A digest of what plain torch makes of a small training: equal where sums have the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(864, 10))
            optimizer = torch.optim.Adam(net.parameters(), 1e-2)
            for _ in range(10):
                loss = nn.functional.cross_entropy(net(torch.randn(64, 1, 28, 28)), torch.randint(10, (64,)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    finally:
        torch.set_num_threads(threads)
    weights = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
    return f"torch {torch.__version__}, {hashlib.sha256(weights).hexdigest()[:16]}"


def made(name: str, folder: Path) -> str:
    """The digest of the file of a command."""
    arguments = [*COMMANDS[name].split(), "--threads", "1", "--device", "cpu", "-o", str(folder)]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output
    return hashlib.sha256((folder / "record.safetensors").read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_recorded_command_gives_the_recorded_file(name, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "STEPS", MEASURED[0])  # not as few as in the other tests
    monkeypatch.setattr(measuring, "LEAST", MEASURED[1])
    known = json.loads(RECORDED.read_text()).get(processor())
    if known is None:
        pytest.skip(f"no record of this kind of processor ({processor()})")
    assert made(name, tmp_path / "run") == known[name]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        found = {name: made(name, Path(place) / name) for name in COMMANDS}
    held = json.loads(RECORDED.read_text()) | {processor(): found}
    RECORDED.write_text(json.dumps(held, indent=2) + "\n")
    print(json.dumps(found, indent=2))
