"""subcompress fit."""

from dataclasses import asdict
from pathlib import Path

import click

import subcompress
from subcompress_cli.options import FOLDER, data_options, json_option, model_option, network, print_json
from subcompress_cli.progress import listening


@click.command()
@model_option(required=True)
@data_options(required=True)
@click.option("--d", type=int, required=True, help="Coordinates: the size of the subspace.")
@click.option("--bits", type=int, default=4, show_default=True, help="Bits a coordinate, before entropy coding.")
@click.option("--epochs", type=int, default=10, show_default=True, help="Passes over the training split.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the subspace and of the training.")
@click.option("--lr", type=float, help="Largest step, frozen constant = 1.  [default: 0.35 / sqrt(min(d, m))]")
@click.option("--batch-size", type=int, default=128, show_default=True, help="Examples a step.")
@click.option("--threads", type=int, help="CPU threads of torch.  [default: torch's]")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("-o", "--output", type=FOLDER, required=True, metavar="RUN", help="The run folder to write.")
@json_option
def fit(
    model_name: str,
    data_name: str,
    data_dir: Path | None,
    d: int,
    bits: int,
    epochs: int,
    seed: int,
    lr: float | None,
    batch_size: int,
    threads: int | None,
    device: str,
    output: Path,
    as_json: bool,
) -> None:
    """Train a network in d coordinates and write a run folder."""
    module, data = network(model_name), subcompress.load_data(data_name, data_dir)
    with listening(f"{model_name} on {data_name}, d = {d}", epochs) as listener:
        found = subcompress.fit(
            module,
            data,
            output,
            d=d,
            bits=bits,
            epochs=epochs,
            seed=seed,
            lr=lr,
            batch_size=batch_size,
            threads=threads,
            device=device,
            listener=listener,
        )
    if as_json:
        print_json(asdict(found))
        return
    click.echo(
        f"{found.D} weights in {found.d} coordinates of {found.bits} bits: validation {found.validation_accuracy:.4f}, "
        f"test {found.test_accuracy:.4f}, {found.seconds:.1f} s\nnext: subcompress pack {output} -o net.safetensors"
    )
