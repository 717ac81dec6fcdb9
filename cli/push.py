"""subcompress push."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from subcompress_cli import choices
from subcompress_cli.help import FIT, HUB, Command, option
from subcompress_cli.options import FOLDER, INPUT, base_option, json_option, model_option, print_json, say
from subcompress_cli.streams import answer


@click.command(cls=Command)
@click.argument("file", type=INPUT)
@click.argument("repository", metavar="ORG/NAME[@BRANCH]")
@model_option(
    "The network of FILE, to make an ONNX file of it. Needed only if its tensors do not show which network it is."
)
@option(
    "--run",
    "run_folder",
    type=FOLDER,
    metavar="RUN",
    help="The run folder that FILE was packed from. The card then states accuracy, data and training options.",
    group=FIT,
)
@base_option()
@option(
    "--onnx",
    type=click.Choice(choices.GRAPHS),
    default="auto",
    show_default=True,
    help="The model.onnx to add. auto: one that computes its own weights, or none for a fine-tune. dense: one that "
    "holds its weights.",
    group=HUB,
)
@option("--dataset", metavar="ID", help="The Hub's ID of the data set that the accuracy was measured on.", group=HUB)
@option(
    "--task",
    metavar="TAG",
    help="The Hub's tag of the task, such as image-classification.  [default: derived from the inputs]",
    group=HUB,
)
@option("--license", metavar="ID", help="The license as the Hub spells it, such as apache-2.0 or mit.", group=HUB)
@option(
    "--private/--public",
    default=None,
    help="Who may see a new repository.  [default: the setting of the account]",
    group=HUB,
)
@option("--tag", metavar="NAME", help="Tag the commit with this name.", group=HUB)
@option("-m", "--message", metavar="TEXT", help="The message of the commit.", group=HUB)
@option(
    "--replace-card",
    is_flag=True,
    help="Replace all of README.md, including the sections that its owner wrote.",
    group=HUB,
)
@option("--force", is_flag=True, help="Replace files that subcompress did not write.", group=HUB)
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
    """Publish FILE on the Hugging Face Hub, with a model card and an ONNX file.

    Everything goes into one commit. No commit is made if nothing would change. The command is safe to repeat.
    """
    import subcompress
    from subcompress_cli.finding import network_for, network_if_known

    network = None
    try:
        if onnx == "dense":
            network = network_for(file, model_name, base)
        elif onnx == "auto" and subcompress.info(file)["base"] is None:
            network = network_if_known(file, model_name, base)
    except subcompress.SubcompressError as e:
        raise subcompress.SubcompressError(f"{e} (or push without a graph: --onnx none)") from e
    pushed = subcompress.push(
        file,
        repository,
        None if network is None else network.module,
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
    what = "published" if pushed.changed else "nothing to publish: it is all there already"
    answer(f"{what}: {pushed.url}")
    for name, size in pushed.files.items():
        answer(f"  {name:30} {size:>10,} bytes")
