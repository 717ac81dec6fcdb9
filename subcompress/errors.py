"""The one exception a user's mistake raises, and how to tell that memory ran out."""


class SubcompressError(Exception):
    """A mistake the user can mend: its text is one line that names the rule, what was given and what to do."""


def memory_ran_out(e: BaseException) -> bool:
    """Whether this is what allocators raise."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(e, MemoryError) or (isinstance(e, RuntimeError) and any(w in str(e).lower() for w in words))
