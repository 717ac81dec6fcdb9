"""The one exception a user's mistake raises, what others say in a line, and how to tell that memory ran out."""

import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    r"""The text without what a terminal acts on or what changes how others are shown: control characters (U+009B too),
    marks of direction, separators of lines, lone surrogates. Each becomes what Python would write, \x9b or \u202e;
    line ends and tabs stay.

    Names of tensors, bases, inputs and labels are anybody's, who wrote the file: nothing of a file is printed without.
    """
    return text if text.isascii() and text.isprintable() else _SUSPECT.sub(_escaped, text)


_SUSPECT = re.compile(r"[^ -~\n\t]")


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


class SubcompressError(Exception):
    """A mistake the user can fix: its text is one line that names the rule, what was given and what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ToldError(SubcompressError):
    """An error that another process of the same command tells: nobody needs to read it twice."""


def one_line(e: BaseException, most: int = 300) -> str:
    """What an exception says, its type where that is nothing: on one line, cut between words."""
    return textwrap.shorten(str(e), most, placeholder=" ...") or type(e).__name__


LEFT_OUT = "torch", "onnxscript", "cloudpickle", "matplotlib", "msgspec", "tomli_w"
"""Packages that subcompress needs and subcompress-server leaves out (pyproject.toml, `tool.subcompress.server`)."""


def missing_package(e: ModuleNotFoundError, what: str) -> SubcompressError | None:
    """The error for what needs a package that an installation for servers lacks; None for any other module."""
    name = (e.name or "").partition(".")[0]
    if name not in LEFT_OUT:
        return None
    return SubcompressError(
        f"{what} needs {name}, which is not installed; subcompress-server leaves it out: pip install subcompress"
    )


def shown(text: str) -> str:
    """A name out of a file, for an error: on one line, not too long, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:160])


def memory_ran_out(e: BaseException) -> bool:
    """Whether this is what allocators raise."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(e, MemoryError) or (isinstance(e, RuntimeError) and any(w in str(e).lower() for w in words))


@contextmanager
def explaining(line: Callable[[Exception], str]) -> Iterator[None]:
    """Turn what code that is not ours raises within the block into a SubcompressError with that line.

    A SubcompressError passes unchanged, and so does an error that says that memory ran out: another place reports it.
    """
    try:
        yield
    except SubcompressError:
        raise
    except Exception as e:
        if memory_ran_out(e):
            raise
        raise SubcompressError(line(e)) from e
