"""The Hugging Face Hub as a place where files lie: names, the one module that asks it, downloads."""

from subcompress.remote.downloads import (
    CARD,
    CONFIG,
    FILE,
    GRAPH,
    LARGE,
    Fetched,
    download,
    json_object,
    settings,
    small_file,
    weights_of,
)
from subcompress.remote.references import COMMIT, PREFIX, Reference, is_reference
from subcompress.remote.transport import Hub, Say, quiet

__all__ = [
    "CARD",
    "COMMIT",
    "CONFIG",
    "FILE",
    "GRAPH",
    "LARGE",
    "PREFIX",
    "Fetched",
    "Hub",
    "Reference",
    "Say",
    "download",
    "is_reference",
    "json_object",
    "quiet",
    "settings",
    "small_file",
    "weights_of",
]
