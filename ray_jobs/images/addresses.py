"""Which network addresses a fetch may connect to: the public internet, and what the owner of the data allows."""

import functools
import ipaddress
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

from ray_jobs.images.reasons import ImageRefusedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Globally reachable by IANA's registries, and yet no place of images: protocol assignments (some clouds' metadata),
# 6to4 relays, Azure's own services, and the IPv6 forms that carry an IPv4 address within.
REFUSED_NETWORKS = tuple(
    ipaddress.ip_network(n)
    for n in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2002::/16", "2001::/32", "64:ff9b::/96")
)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet's, in whichever form it is written."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return is_public(mapped)
    if not address.is_global or address.is_multicast or address.is_reserved or getattr(address, "is_site_local", False):
        return False
    return not any(address in network for network in REFUSED_NETWORKS)


@functools.cache
def parse_networks(networks: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Networks as values.

    Raises:
        ValueError: If one is none; the sentence names it.
    """
    try:
        return tuple(ipaddress.ip_network(n) for n in networks)
    except ValueError as error:
        raise ValueError(f"A network of allowed image hosts is none ({error}): write e.g. 10.1.0.0/16.") from error


def allowed(address: Address, networks: tuple[str, ...]) -> bool:
    """Whether a fetch may connect to ``address``: it is public, or within one of ``networks``."""
    plain = getattr(address, "ipv4_mapped", None) or address
    return is_public(plain) or any(plain in network for network in parse_networks(networks))


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """Runs ``work`` in a thread of its own, because the system's resolver knows no deadline."""
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def go() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=go, daemon=True).start()
    try:
        value, error = done.get(timeout=max(seconds, 0.001))
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return value


def resolve(host: str, port: int, networks: tuple[str, ...], seconds: float) -> list[str]:
    """Looks a host up once, and returns the addresses that a connection may go to.

    Forms such as ``2130706433`` or ``0x7f.1`` are addresses to the resolver, and are judged as what they mean.

    Raises:
        ImageRefusedError: ``private_address`` if any of them may not be connected to, ``unreachable`` without any.
        TimeoutError: If the resolver takes longer than ``seconds``.
    """
    try:
        found = _within(seconds, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        if isinstance(error, TimeoutError):
            raise
        raise ImageRefusedError("unreachable", host=host, error="its name leads nowhere") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        # A zone (fe80::1%eth0) belongs to a link-local address.
        if "%" in text or not allowed(ipaddress.ip_address(text), networks):
            raise ImageRefusedError("private_address", host=host, address=text)
    return addresses
