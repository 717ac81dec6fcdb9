"""The command line: parses, calls the library, prints. A new command is one file and one line here."""

import click

from subcompress import __version__
from subcompress.remote.transport import LISTENERS
from subcompress_cli.compare import compare
from subcompress_cli.dim import dim
from subcompress_cli.doctor import doctor
from subcompress_cli.errors import Group
from subcompress_cli.export import export
from subcompress_cli.fit import fit
from subcompress_cli.info import info
from subcompress_cli.options import say
from subcompress_cli.pack import pack
from subcompress_cli.pull import pull
from subcompress_cli.push import push
from subcompress_cli.report import report
from subcompress_cli.unpack import unpack
from subcompress_cli.verify import verify


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="subcompress")
def main() -> None:
    """A PyTorch model as a few hundred bytes: a seed and d small integers, rebuilt bit for bit anywhere."""


LISTENERS.append(say)

for command in (fit, dim, pack, unpack, info, verify, compare, report, doctor, push, pull, export):
    main.add_command(command)
