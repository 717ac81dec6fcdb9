"""subcompress push."""

from dataclasses import asdict
from pathlib import Path

import click

import subcompress
from subcompress.hub import GRAPHS
from subcompress_cli.finding import network_for, network_if_known
from subcompress_cli.networks import model_option
from subcompress_cli.options import FOLDER, INPUT, base_option, json_option, print_json, say
from subcompress_cli.streams import Command, answer


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@click.argument("repository", metavar="ORG/NAME[@BRANCH]")
@model_option()
@click.option(
    "--run", "run_folder", type=FOLDER, metavar="RUN", help="What it was packed from: accuracy, data, recipe."
)
@base_option
@click.option(
    "--onnx",
    type=click.Choice(GRAPHS),
    default="auto",
    show_default=True,
    help="model.onnx: self-unfolding where it can.",
)
@click.option("--dataset", metavar="ID", help="What the Hub calls the data it was measured on.")
@click.option("--task", metavar="TAG", help="What the Hub calls what it is for.  [default: from the inputs]")
@click.option("--license", metavar="ID", help="As the Hub spells it: apache-2.0, mit, ...")
@click.option("--private/--public", default=None, help="Who may see a new repository.  [default: the account's]")
@click.option("--tag", metavar="NAME", help="Tag the commit.")
@click.option("-m", "--message", metavar="TEXT", help="Of the commit.")
@click.option("--replace-card", is_flag=True, help="Write README.md anew, its owner's sections too.")
@click.option("--force", is_flag=True, help="Replace files that no push of ours wrote.")
@json_option
def push(
    file: Path,
    repository: str,
    model_name: str | None,
    run_folder: Path | None,
    base: str | None,
    onnx: str,
    dataset: str | None,
    task: str | None,
    license: str | None,
    private: bool | None,
    tag: str | None,
    message: str | None,
    replace_card: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Publish FILE on the Hugging Face Hub, with its card and, of a network that is known, an ONNX file.

    In one commit, and none where nothing would change; the same command is safe to give again.
    """
    module = None
    if onnx == "dense":
        module = network_for(file, model_name, base)
    elif onnx == "auto" and subcompress.info(file)["base"] is None:
        module = network_if_known(file, model_name, base)
    pushed = subcompress.push(
        file,
        repository,
        module,
        about=subcompress.hub.About(run_folder, dataset, task, license),
        base=base,
        onnx=onnx,
        private=private,
        tag=tag,
        message=message,
        force=force,
        replace_card=replace_card,
        say=say,
    )
    if as_json:
        print_json(asdict(pushed))
        return
    what = "published" if pushed.changed else "nothing to publish, it is all there"
    answer(f"{what}: {pushed.url}")
    for name, size in pushed.files.items():
        answer(f"  {name:30} {size:>10,} bytes")
