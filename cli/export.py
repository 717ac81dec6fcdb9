"""subcompress export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from subcompress import SubcompressError
from subcompress.remote import Reference, is_reference
from subcompress.serving.triton import BACKENDS, MAX_BATCH, Source, check_names
from subcompress.serving.triton import export as export_all
from subcompress_cli.finding import Built, network_for
from subcompress_cli.networks import model_option
from subcompress_cli.options import FOLDER, base_option, json_option, print_json, say
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--triton-repo",
    "repository",
    type=FOLDER,
    required=True,
    metavar="DIR",
    help="Model repository of NVIDIA Triton to write into.",
)
@click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    default="onnxruntime",
    show_default=True,
    help="Of Triton, to run the graphs.",
)
@click.option("--dense", is_flag=True, help="Graphs with their weights inside.  [default: self-unfolding]")
@model_option()
@base_option
@click.option("--name", metavar="NAME", help="Of the model, for one FILE.  [default: FILE's, or its repository's]")
@click.option(
    "--max-batch", type=int, default=MAX_BATCH, show_default=True, help="Examples that requests are joined to; 0: none."
)
@click.option("--force", is_flag=True, help="Replace model folders that no export wrote, or that were changed since.")
@json_option
def export(
    files: tuple[str, ...],
    repository: Path,
    backend: str,
    dense: bool,
    model_name: str | None,
    base: str | None,
    name: str | None,
    max_batch: int,
    force: bool,
    as_json: bool,
) -> None:
    """Write each FILE, packed or .onnx, as a model for other servers.

    A packed FILE needs the network it was made from: --model, unless its layout is that of one known by name.
    """
    if name is not None and len(files) > 1:
        raise SubcompressError(f"a name is of one model; {len(files)} files are given with --name: export one by one")
    named = [(name if name is not None else _name(file), file) for file in files]
    check_names(named)
    built: Built = {}
    sources = [_source(file, called, model_name, base, dense, built) for called, file in named]
    found = export_all(sources, repository, backend=backend, dense=dense, max_batch=max_batch, force=force)
    if as_json:
        print_json({"repository": repository, "backend": backend, "models": [asdict(each) for each in found]})
        return
    for each in found:
        joined = f"requests joined up to {each.max_batch}" if each.max_batch else "requests one by one"
        answer(f"{each.folder}: {sum(each.files.values())} bytes, {joined}")


def _name(file: str) -> str:
    """What a model is called after: its file without the suffix, or its repository without the owner."""
    return Reference.of(file).id.rpartition("/")[2] if is_reference(file) else Path(file).stem


def _source(file: str, name: str, model: str | None, base: str | None, dense: bool, built: Built) -> Source:
    """built: networks of the files before."""
    from subcompress import format  # which imports NumPy, and help texts do not
    from subcompress.hub import local

    path = local(file, say=say)
    if path.suffix == ".onnx":
        return Source(path, name)
    if format.contents(path).base is not None and not dense:
        return Source(path, name, None, base)  # which is refused
    return Source(path, name, network_for(path, model, base, built), base)
