"""Fetching images over http(s) from servers that nobody vouches for.

A host is looked up once, its addresses are judged, and the connection goes to one of them: a name that leads elsewhere
a moment later changes nothing. One deadline covers lookup, connection, redirects and every byte. No proxy of the
environment is used, because a proxy would look hosts up by itself.
"""

import collections
import contextlib
import fnmatch
import functools
import ssl
import time
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import httpcore

from ray_jobs.images.addresses import resolve
from ray_jobs.images.limits import ImageLimits, RemoteRule
from ray_jobs.images.reasons import ImageRefusedError, malformed

HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "User-Agent": "belvedere-image-intake",
}
REDIRECTS = (301, 302, 303, 307, 308)
NOT_MODIFIED = 304
# Statuses below 500 that another day may change.
LATER = (408, 425, 429)
# After so many images in a row that a host did not give, its others are not waited for.
GIVE_UP_HOST = 5


class Fetched(NamedTuple):
    """What a server gave.

    Attributes:
        data: The bytes, or None if the file is the one that ``known`` names.
        fingerprint: ``etag:...`` or ``modified:...`` as the server says it; empty if it says neither.
    """

    data: bytes | None
    fingerprint: str


class _Clock:
    """The deadline of the fetch at hand; connections that are kept between fetches share it."""

    until = 0.0

    def left(self, most: float | None = None) -> float:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left if most is None else min(left, most)


class _Stream(httpcore.NetworkStream):
    """A connection that keeps to the clock, so that a server which drips bytes does not outlast it."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock):
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._clock.left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._clock.left(timeout)), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _PinnedBackend(httpcore.NetworkBackend):
    """Connects to judged addresses only."""

    def __init__(self, rule: RemoteRule, clock: _Clock):
        self._rule, self._clock, self._plain = rule, clock, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = resolve(host, port, self._rule.networks, self._clock.left(timeout))
        failed: Exception | None = None
        for address in addresses:
            try:
                stream = self._plain.connect_tcp(
                    address, port, self._clock.left(timeout), local_address, socket_options
                )
                return _Stream(stream, self._clock)
            except httpcore.ConnectError as error:
                failed = error
        raise failed or httpcore.ConnectError(f"{host} has no address")


class RemoteFetcher:
    """Fetches images; of one thread.

    Args:
        rule: What may be fetched, and how long it may take.
        limits: Most bytes.
    """

    def __init__(self, rule: RemoteRule, limits: ImageLimits):
        self.rule, self.limits = rule, limits
        self._clock = _Clock()
        self._pool = httpcore.ConnectionPool(
            ssl_context=_tls(),
            max_connections=4,
            max_keepalive_connections=2,
            keepalive_expiry=30.0,
            network_backend=_PinnedBackend(rule, self._clock),
        )
        self._failures: collections.Counter[str] = collections.Counter()

    def fetch(self, url: str, known: str = "") -> Fetched:
        """Fetches one image.

        Args:
            url: Its address.
            known: Fingerprint of what the caller has; equal content is then not sent again.

        Raises:
            ImageRefusedError: If it may not be fetched, or the server does not give it.
        """
        host = self._checked(url).hostname or ""
        if self._failures[host] >= GIVE_UP_HOST:
            raise ImageRefusedError("unreachable", host=host, error="as for the images before")
        self._clock.until = time.monotonic() + self.rule.fetch_seconds
        try:
            fetched = self._follow(url, known)
        except (TimeoutError, httpcore.TimeoutException):
            self._failures[host] += 1
            raise ImageRefusedError("fetch_timeout", host=host, limit=self.rule.fetch_seconds) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            self._failures[host] += 1
            raise ImageRefusedError("unreachable", host=host, error=str(error) or type(error).__name__) from None
        except ImageRefusedError as refused:
            self._failures[host] += refused.transient
            raise
        self._failures.pop(host, None)
        return fetched

    def close(self) -> None:
        """Ends its connections."""
        self._pool.close()

    def _checked(self, url: str) -> SplitResult:
        """Takes an address apart, as far as it may be asked."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            raise malformed(url) from None
        if parts.scheme not in ("http", "https"):
            raise ImageRefusedError("unsupported_scheme", scheme=f"{parts.scheme}:")
        if not host or parts.username is not None or parts.password is not None:
            raise ImageRefusedError("bad_address", uri=url.split("@")[-1], error="no host, or a user in it")
        if not any(_matches(host, pattern) for pattern in self.rule.hosts):
            raise ImageRefusedError("remote_off", host=host)
        if (port or (443 if parts.scheme == "https" else 80)) not in self.rule.ports:
            raise ImageRefusedError("bad_address", uri=url, error=f"port {port}")
        return parts

    def _follow(self, url: str, known: str) -> Fetched:
        for _ in range(self.rule.max_redirects + 1):
            parts = self._checked(url)
            headers = dict(HEADERS)
            kind, _, value = known.partition(":")
            if kind in ("etag", "modified") and _sendable(value):
                headers["If-None-Match" if kind == "etag" else "If-Modified-Since"] = value
            with contextlib.ExitStack() as stack:
                try:
                    response = stack.enter_context(self._pool.stream("GET", _ascii(parts), headers=headers))
                except (ValueError, TypeError) as error:
                    raise ImageRefusedError("bad_address", uri=url, error=str(error)) from None
                told = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in response.headers}
                if response.status in REDIRECTS and "location" in told:
                    try:
                        url = urljoin(url, told["location"])
                    except ValueError:
                        raise malformed(told["location"]) from None
                    continue
                return self._body(response, told, parts.hostname or "", known)
        raise ImageRefusedError("too_many_redirects", host=parts.hostname, limit=self.rule.max_redirects)

    def _body(self, response: httpcore.Response, told: dict[str, str], host: str, known: str) -> Fetched:
        if response.status == NOT_MODIFIED and known:
            return Fetched(None, known)
        if response.status != 200:
            later = response.status >= 500 or response.status in LATER
            raise ImageRefusedError("http_unavailable" if later else "http_refused", host=host, status=response.status)
        data = bytearray()
        # A declared length only ever shortens the matter: what comes is counted.
        for part in response.iter_stream():
            data += part
            if len(data) > self.limits.max_bytes:
                raise ImageRefusedError("too_many_bytes", limit=self.limits.max_bytes)
        etag, modified = told.get("etag", ""), told.get("last-modified", "")
        if _sendable(etag):
            return Fetched(bytes(data), f"etag:{etag}")
        return Fetched(bytes(data), f"modified:{modified}" if _sendable(modified) else "")


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _matches(host: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(host.lower(), pattern.lower())


def _sendable(validator: str) -> bool:
    """Whether a server's ETag or time can be sent back to it; others are ignored, as if it had said none."""
    return validator.isascii() and validator.isprintable() and validator != ""


def _ascii(parts: SplitResult) -> str:
    """The address in the characters that a request line may hold."""
    name = parts.hostname or ""
    host = f"[{name}]" if ":" in name else name.encode("idna").decode()
    netloc = host + (f":{parts.port}" if parts.port else "")
    query = f"?{quote(parts.query, safe='%=&+/:,;@!$()*~[]')}" if parts.query else ""
    return f"{parts.scheme}://{netloc}{quote(parts.path or '/', safe='%/:=&+,;@!$()*~')}{query}"
