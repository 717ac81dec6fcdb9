"""The one exception a user's mistake raises."""


class SubcompressError(Exception):
    """A mistake the user can mend: its text is one line that names the rule, what was given and what to do."""
