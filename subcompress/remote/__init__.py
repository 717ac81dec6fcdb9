"""The Hugging Face Hub as storage: references to repositories, requests and downloads."""

from subcompress.remote.downloads import (
    CARD,
    CONFIG,
    FILE,
    GRAPH,
    LARGE,
    Fetched,
    companions_of,
    download,
    json_object,
    settings,
    small_file,
    weights_of,
)
from subcompress.remote.references import COMMIT, PREFIX, Reference, is_reference
from subcompress.remote.transport import Hub, Log, log_to_listeners

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
    "Log",
    "Reference",
    "companions_of",
    "download",
    "is_reference",
    "json_object",
    "log_to_listeners",
    "settings",
    "small_file",
    "weights_of",
]
