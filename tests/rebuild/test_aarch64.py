"""Golden files on 64-bit ARM, under QEMU: read, rebuilt, and streamed as `verify` does, without torch."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
from places import GOLDEN, ROOT
from records import golden_bases

FOLDER = Path(os.environ.get("SUBCOMPRESS_AARCH64", ROOT / ".aarch64"))
QEMU = FOLDER / "tools/usr/bin/qemu-aarch64-static"
TRUTH = json.loads((GOLDEN / "golden.json").read_text("utf-8"))

CODE = """
import hashlib, json, platform
import sys
from pathlib import Path
import subcompress
golden, bases, built = map(Path, sys.argv[1:4])
subcompress.__path__.append(str(built))
from subcompress import format
from subcompress.native.compiled import library, taken
from subcompress.rebuild import arrays
from subcompress.rebuild.streaming import stream
from subcompress.tensors.layout import raw_bytes
print(platform.machine(), taken(), library() is not None)
for name, truth in json.loads((golden / "golden.json").read_text("utf-8")).items():
    base = bases / f"{name}.safetensors"
    record, _ = format.read(golden / f"{name}.safetensors", base if base.exists() else None)
    found = {key: hashlib.sha256(raw_bytes(a)).hexdigest() for key, a in arrays.rebuild(record).items()}
    streamed = all(stream(record, backend=b) == record.digest for b in (["native"] if library() else []) + ["numpy"])
    print(name, found == truth["tensors"], streamed)
"""


def test_the_script_that_sets_it_up_is_sound():
    subprocess.run(["sh", "-n", ROOT / "tests/aarch64.sh"], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("vectors", "said"), [("", "plain True"), ("numpy", "numpy False")])
def test_golden_files_on_aarch64(tmp_path, vectors, said):
    if not (FOLDER / "ready").exists():
        pytest.skip("needs QEMU and an aarch64 Python, which `make aarch64` downloads (tests/aarch64.sh)")
    for name, base in golden_bases().items():
        safetensors.torch.save_file(base, tmp_path / f"{name}.safetensors")
    home = {"PYTHONHOME": str(FOLDER / "root/usr"), "PYTHONPATH": f"{ROOT}{os.pathsep}{FOLDER / 'site'}"}
    done = subprocess.run(
        [
            QEMU,
            "-L",
            FOLDER / "root",
            FOLDER / "root/usr/bin/python3.11",
            "-c",
            CODE,
            GOLDEN,
            tmp_path,
            FOLDER / "built",
        ],
        check=False,
        capture_output=True,
        text=True,
        env=home | {"SUBCOMPRESS_VECTORS": vectors, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"aarch64 {said}\n" + "".join(f"{name} True True\n" for name in TRUTH)
