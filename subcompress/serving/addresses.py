"""Parse hosts and origins in requests. An invalid one gives None."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from contextlib import suppress

from subcompress.errors import SubcompressError

_NAME = r"[A-Za-z0-9._~%!$&'()*+,;=-]+"
_AUTHORITY = re.compile(rf"(?P<host>\[[0-9A-Fa-f:.]+\]|{_NAME})(?::(?P<port>[0-9]{{0,5}}))?")
_ORIGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]+)")

PORTS = {"http": "80", "https": "443"}
"""The default ports, for addresses without one."""


def host_of(authority: str) -> str | None:
    """Return the host in HOST or HOST:PORT in lower case, without the brackets of an IPv6 address; None if invalid."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        return None
    host = found["host"].lower()
    if not host.startswith("["):
        return host
    with suppress(ValueError):
        return str(ipaddress.IPv6Address(host[1:-1]))
    return None


def origin_of(text: str) -> str | None:
    """Normalize an origin, SCHEME://HOST[:PORT], as browsers spell it: lower case, without the default port; None if
    invalid."""
    found = _ORIGIN.fullmatch(text)
    if found is None or (host := host_of(found["authority"])) is None:
        return None
    scheme = found["scheme"].lower()
    port = (_AUTHORITY.fullmatch(found["authority"]) or {"port": None})["port"] or ""
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}" + (f":{port}" if port and port != PORTS.get(scheme) else "")


def is_loopback(host: str) -> bool:
    """Return whether the host is reachable from this machine only."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def parse_origins(origins: Iterable[str]) -> frozenset[str]:
    """Normalize a list of origins. Raises SubcompressError for an invalid one."""
    found = {text: origin_of(text) for text in origins}
    for text, origin in found.items():
        if origin is None:
            raise SubcompressError(
                f"an origin must be SCHEME://HOST or SCHEME://HOST:PORT; got {text!r}: give https://example.org"
            )
    return frozenset(origin for origin in found.values() if origin)
