"""benchmarks/memory.py and benchmarks/gpu_finetune.py run, on a Llama that they make."""

import re
import sys

import pytest
from lazily import needed
from places import ROOT

needed("transformers")
sys.path.append(str(ROOT / "benchmarks"))

gpu_finetune, memory = needed("gpu_finetune"), needed("memory")


@pytest.mark.slow
def test_a_fit_takes_little_more_memory_than_the_network(tmp_path):
    memory.make(tmp_path, "small")
    lines = memory.table(tmp_path, 16, ("libraries", "fit"))
    *_, share = (float(cell) for cell in re.findall(r"\| ([\d.]+) \|$", "\n".join(lines), re.M))
    assert share < 2.5  # of 130 MB: activations and what a fit imports are a large part


@pytest.mark.slow
def test_the_rows_of_a_tiny_fine_tune(tmp_path):
    gpu_finetune.main(["--tiny", "--device", "cpu", "-o", str(tmp_path)])
    rows = (tmp_path / "gpu-finetune.md").read_text("utf-8").splitlines()[4:]
    assert len(rows) == len(gpu_finetune.TYPES) * len(gpu_finetune.WAYS)
    assert all(re.fullmatch(r"\| [\w, ]+ \| [\w, ]+ \| [\d,]+ MB \| [\d,]+ \| \d+ \|", row) for row in rows)
