"""Sharing packed files on the Hugging Face Hub: push, pull, load. huggingface_hub is imported on first use.

subcompress.push("net.safetensors", "ORG/NAME", module)
subcompress.pull("ORG/NAME", "net.safetensors")
subcompress.from_pretrained("ORG/NAME", module)
"""

from typing import TYPE_CHECKING

from subcompress.remote import Fetched, Reference
from subcompress.support.names import GRAPHS

if TYPE_CHECKING:
    from subcompress.hub.card import About
    from subcompress.hub.fetching import fetch, from_pretrained, local, pull
    from subcompress.hub.publishing import Pushed, push
else:
    from subcompress.support import lazy

    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "card": ("About",),
            "fetching": ("fetch", "from_pretrained", "local", "pull"),
            "publishing": ("Pushed", "push"),
        },
    )

__all__ = [
    "GRAPHS",
    "About",
    "Fetched",
    "Pushed",
    "Reference",
    "fetch",
    "from_pretrained",
    "local",
    "pull",
    "push",
]
