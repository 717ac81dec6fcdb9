"""The command line, called as a test calls it."""

from click.testing import CliRunner, Result

from subcompress_cli import main


def cli(*args: object) -> Result:
    """Run a command in this process; stdout and stderr apart. An exception that is not ours goes through."""
    return CliRunner().invoke(main, [str(a) for a in args], catch_exceptions=False)
