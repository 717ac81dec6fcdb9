"""The whole path on data that comes with the package: train, fit, pack, verify, unpack, run. `make demo` calls this.

    python examples/demo.py [--d 500] [--bits 4] [--epochs 40] [-o runs/demo]

LeNet (44,426 weights) on the 8x8 handwritten digits of scikit-learn, upscaled to 28x28.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import subcompress
from subcompress.training.loop import Direct, TrainOptions, train
from subcompress.training.tasks import Task, accuracy_of
from subcompress_cli.progress import listening
from subcompress_models import MODELS

BATCH = 32


def directly(data: subcompress.Data, epochs: int, listener: subcompress.Listener) -> tuple[float, float]:
    """Test accuracy and seconds of the same network, trained in all of its weights."""
    began = time.perf_counter()
    torch.manual_seed(0)
    net = MODELS["lenet"]()
    train(Direct(net), data, Task.of(), TrainOptions(epochs, 3e-3, BATCH), listener=listener)
    return accuracy_of(net, data.test), time.perf_counter() - began


def in_onnx_runtime(graph: Path, split: subcompress.Split) -> float:
    """Fraction of the split that the graph puts first; nothing of subcompress is used here."""
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"input": split.x.numpy()})[0]
    return float(np.mean(np.argmax(outputs, 1) == split.y.numpy()))


def show(rows: dict[str, str]) -> None:
    """A row a fact, wrapped to 100 columns."""
    print("\nLeNet on handwritten digits")
    for what, value in rows.items():
        print(textwrap.fill(value, 100, initial_indent=f" {what:33}", subsequent_indent=" " * 34))


def main() -> None:
    """Run every step and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=500)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/demo"))
    options = parser.parse_args()
    began, folder, data = time.perf_counter(), options.output, subcompress.load_data("digits")
    names = ("net.safetensors", "dense.safetensors", "net.onnx", "unfolding.onnx")
    net, dense, graph, unfolding = (folder / name for name in names)

    print("1. the network trained directly, for comparison")
    with listening("all 44,426 weights") as listener:
        listener.run("direct", options.epochs)
        baseline, direct_seconds = directly(data, options.epochs, listener)
    print(f"2. the same network in {options.d} coordinates of {options.bits} bits")
    settings = {"d": options.d, "bits": options.bits, "epochs": options.epochs, "batch_size": BATCH}
    with listening("LeNet") as listener:
        fit = subcompress.fit(MODELS["lenet"], data, folder, **settings, restart=True, listener=listener)
    print("3. pack, verify, unpack, run in ONNX Runtime")
    size = subcompress.pack(folder, net)
    verified = subcompress.verify(net)
    subcompress.unpack(net, dense)
    subcompress.unpack(net, graph, MODELS["lenet"]())
    subcompress.unpack(net, unfolding, MODELS["lenet"](), self_unfolding=True)
    accuracy = in_onnx_runtime(unfolding, data.test)

    found = subcompress.info(net)
    ledger = found["ledger"]
    show(
        {
            "dense weights": f"{dense.stat().st_size:,} bytes (safetensors), {graph.stat().st_size:,} (ONNX)",
            "subcompress file": f"{size} bytes: {', '.join(f'{part} {n}' for part, n in ledger.items())}",
            "ONNX file that unfolds itself": f"{unfolding.stat().st_size:,} bytes",
            "ratio": f"{dense.stat().st_size / size:.0f} times smaller",
            "coordinates": f"d = {fit.d} of D = {fit.D:,}, {8 * ledger['coordinates'] / fit.d:.2f} bits each",
            "same bits from": ", ".join(f"{k}: {'yes' if v else 'NO'}" for k, v in verified.backends.items()),
            "test accuracy, trained directly": f"{baseline:.4f}",
            "test accuracy, in the subspace": f"{fit.test_accuracy:.4f}",
            "test accuracy, of that ONNX file": f"{accuracy:.4f}",
            "seconds": f"{direct_seconds:.0f} direct, {fit.seconds:.0f} fit, {time.perf_counter() - began:.0f} in all",
        }
    )
    if not verified.ok or accuracy != fit.test_accuracy:
        raise SystemExit("the rebuilt weights are not those that were fitted")


if __name__ == "__main__":
    main()
