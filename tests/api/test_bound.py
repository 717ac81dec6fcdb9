"""The bound on the error from the bytes of a file."""

from __future__ import annotations

import math

import pytest
from commands import cli
from places import ROOT

import subcompress
from subcompress import SubcompressError
from subcompress.api.bound import bound_of

FILE = ROOT / "tests" / "golden" / "lenet.safetensors"


def test_gap_is_that_of_the_formula_and_shrinks_with_examples():
    bound = bound_of(250, 60_000, 0.05)
    nats = 250 * 8 * math.log(2) + math.log(250 * 251 / 0.05)
    assert bound.gap == pytest.approx(math.sqrt(nats / 120_000))
    assert bound_of(250, 240_000).gap == pytest.approx(bound.gap / 2)
    assert bound.error(0.02) == pytest.approx(0.02 + bound.gap)
    assert not bound.vacuous


def test_shares_of_all_files_add_up_to_one():
    assert math.fsum(1 / (n * (n + 1)) for n in range(1, 100_000)) == pytest.approx(1, abs=1e-4)


def test_a_bound_that_says_nothing_says_so():
    bound = bound_of(1000, 1000)
    assert bound.vacuous and "vacuous" in str(bound)
    assert bound.error(0.0) == 1


def test_info_tells_the_bound(tmp_path):
    found = subcompress.info(FILE, bound=60_000)
    assert found["bound"] == bound_of(found["file_bytes"], 60_000).to_json()
    assert "bound" not in subcompress.info(FILE)
    shown = cli("info", FILE, "--bound", "60000", "--delta", "0.01").stdout
    assert f"plus {bound_of(found['file_bytes'], 60_000, 0.01).gap:.4f}, with probability 0.99" in shown


@pytest.mark.parametrize(
    ("args", "words"), [(["0"], "at least 1 training example"), (["5", "--delta", "1"], "delta must be")]
)
def test_a_bound_that_cannot_be_is_refused_in_one_line(args, words):
    result = cli("info", FILE, "--bound", *args)
    assert result.exit_code == 1 and words in result.stderr and result.stderr.count("\n") == 1
    with pytest.raises(SubcompressError, match="bound must be a whole number"):
        subcompress.info(FILE, bound=1.5)
