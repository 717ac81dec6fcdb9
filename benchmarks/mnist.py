"""LeNet (44,426 weights) on MNIST at the sizes the project promises: whole files, accuracy in ONNX Runtime.

    python benchmarks/mnist.py --data-dir MNIST [--cases 600:4,2000:4] [--epochs 10] [--seeds 1] [-o benchmarks/results]

The recipe is `subcompress fit`'s default. Accuracy is that of the exported graph, one test image at a time; the test
split is read once a run, after training. About two minutes a case and seed on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import subcompress
from subcompress_models import MODELS


def measure(model: str, data: subcompress.Data, d: int, bits: int, epochs: int, seed: int) -> list[str]:
    """One row: d, bits, seed, accuracies, bytes by kind, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.safetensors"
        fit = subcompress.fit(
            MODELS[model], data, Path(folder) / "run", d=d, bits=bits, epochs=epochs, seed=seed, threads=1
        )
        size = subcompress.pack(Path(folder) / "run", file)
        verified = subcompress.verify(file, data, MODELS[model]())
        coordinates = subcompress.info(file)["ledger"]["coordinates"]
    if not verified.ok:
        raise SystemExit(f"d = {d}: the backends disagree: {verified.backends}")
    accuracies = (f"{fit.validation_accuracy:.4f}", f"{fit.test_accuracy:.4f}", f"{verified.test_accuracy:.4f}")
    return [
        f"{d}",
        f"{bits}",
        f"{seed}",
        *accuracies,
        f"{coordinates}",
        f"{size - coordinates}",
        f"{size}",
        f"{fit.seconds:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--cases", default="600:4,2000:4", help="d:bits, separated by commas")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
    data = subcompress.load_data("mnist", options.data_dir)
    lines = [
        f"{options.model} on MNIST, {options.epochs} epochs, one thread, {time.strftime('%Y-%m-%d')}\n",
        "| d | bits | seed | validation | test | test, ONNX | coordinates, B | beside them, B | file, B | fit, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for case in options.cases.split(","):
        d, bits = map(int, case.split(":"))
        for seed in range(options.seeds):
            lines.append("| " + " | ".join(measure(options.model, data, d, bits, options.epochs, seed)) + " |")
            print(lines[-1], flush=True)
    if options.output:
        (options.output / f"mnist-{options.model}.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
