"""Sockets that servers listen on."""

from __future__ import annotations

import errno
import socket

from subcompress.errors import SubcompressError
from subcompress.serving.refusals import shown


def open_socket(host: str, port: int, shared: bool = False, option: str = "--port") -> socket.socket:
    """Open a listening socket. Port 0 means any free port.

    shared: other processes bind to the same port too, and the socket does not listen yet; option: the option of the
    command line that sets the port, for messages. Raises SubcompressError if that fails.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as e:
        raise SubcompressError(
            f"--host must be an address of this machine; {shown(host)} is not ({getattr(e, 'strerror', e)})"
        ) from e
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if not shared:
            sock.listen(1024)
        sock.setblocking(False)
    except OSError as e:
        sock.close()
        if e.errno == errno.EADDRINUSE:
            raise SubcompressError(f"port {port} of {host} is taken by another program: give another {option}") from e
        raise SubcompressError(f"{host}:{port} cannot be used ({e.strerror or e}): give another") from e
    return sock


def address_of(host: str, port: int) -> str:
    """Return HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
