"""subcompress export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from subcompress.errors import SubcompressError
from subcompress_cli import choices
from subcompress_cli.help import OUTPUT, Command, option
from subcompress_cli.options import FOLDER, base_option, json_option, model_option, print_json, say
from subcompress_cli.streams import answer

if TYPE_CHECKING:
    from subcompress.serving.triton import Source
    from subcompress_cli.finding import Built


@click.command(cls=Command)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@model_option("The network of the FILEs, if it is none of the named ones.")
@base_option()
@option(
    "--triton-repo",
    "repository",
    type=FOLDER,
    required=True,
    metavar="DIR",
    help="The model repository of NVIDIA Triton to write into.",
    group=OUTPUT,
)
@option(
    "--backend",
    type=click.Choice(choices.TRITON_BACKENDS),
    default="onnxruntime",
    show_default=True,
    help="The backend of Triton that runs the model.",
    group=OUTPUT,
)
@option(
    "--dense",
    is_flag=True,
    help="Write graphs that hold their weights, not graphs that unfold them when they are loaded.",
    group=OUTPUT,
)
@option(
    "--name",
    metavar="NAME",
    help="The name of the model, if there is one FILE.  [default: that of FILE or of its repository]",
    group=OUTPUT,
)
@option(
    "--max-batch",
    type=int,
    default=choices.MAX_BATCH,
    show_default=True,
    help="Most examples in a batch that Triton joins from requests. 0: join none.",
    group=OUTPUT,
)
@option(
    "--force",
    is_flag=True,
    help="Replace model folders that `export` did not write or that were changed since.",
    group=OUTPUT,
)
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
    """Write each FILE as a model for NVIDIA Triton, which KServe can also run.

    A FILE is a packed file, hub:ORG/NAME[@REV], or an .onnx file.
    """
    from subcompress.serving.triton import check_names
    from subcompress.serving.triton import export as export_all

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
    """The name of a model: its file without the suffix, or its repository without the owner."""
    from subcompress.hub import Reference
    from subcompress.remote import is_reference

    return Reference.of(file).id.rpartition("/")[2] if is_reference(file) else Path(file).stem


def _source(file: str, name: str, model: str | None, base: str | None, dense: bool, built: Built) -> Source:
    """The model to write. built: networks of the files before."""
    from subcompress import format
    from subcompress.hub import local
    from subcompress.serving.triton import Source
    from subcompress_cli.finding import network_for

    path = local(file, say=say)
    if path.suffix == ".onnx":
        return Source(path, name)
    if format.contents(path).base is not None and not dense:
        return Source(path, name, None, base)  # which is refused
    return Source(path, name, network_for(path, model, base, built).module, base)
