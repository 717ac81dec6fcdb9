"""The one exception a user's mistake raises, what others say in a line, and how to tell that memory ran out."""

import textwrap


class SubcompressError(Exception):
    """A mistake the user can mend: its text is one line that names the rule, what was given and what to do."""


def one_line(e: BaseException, most: int = 300) -> str:
    """What an exception says, its type where that is nothing: on one line, cut between words."""
    return textwrap.shorten(str(e), most, placeholder=" ...") or type(e).__name__


def shown(text: str) -> str:
    """A name out of a file, for an error: on one line, not too long, without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:160])


def memory_ran_out(e: BaseException) -> bool:
    """Whether this is what allocators raise."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(e, MemoryError) or (isinstance(e, RuntimeError) and any(w in str(e).lower() for w in words))
