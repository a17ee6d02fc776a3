"""Why an image is quarantined: every reason with its sentence, its fix, and whether another try can help."""

from typing import NamedTuple


class Reason(NamedTuple):
    """What a reason code says.

    Attributes:
        says: What is wrong; the placeholders are filled in by whoever refuses.
        fix: What mends it.
        transient: Whether the same file may be read on another day: it is tried again on every run.
        tries: In how many runs in a row the same file is tried, where it is not transient.
    """

    says: str
    fix: str
    transient: bool = False
    tries: int = 1


# A busy machine can be at fault, but a hostile file must not cost its seconds for ever.
TRIES = 3


REASONS = {
    "outside_dataset": Reason(
        "{uri} is not below the dataset's folder",
        "copy the file into the folder and name it by its path there (no absolute path, `file://`, `..` or link out)",
    ),
    "unsupported_scheme": Reason(
        "No image is read from addresses of the kind {scheme}",
        "name a path below the dataset's folder, or an http(s) address",
    ),
    "not_found": Reason("There is no file {uri}", "add the file, or correct image_uri"),
    "not_a_file": Reason("{uri} is no regular file", "name a file"),
    "empty": Reason("The file has no bytes", "write the file again"),
    "too_many_bytes": Reason("The file has more than {limit:,} bytes", "shrink it, or raise max_bytes"),
    "wrong_type": Reason("The file is {found}, not an image of an allowed format", "convert it to {allowed}"),
    "too_small": Reason(
        "The image has {width} x {height} pixels, a side of less than {limit}", "supply a larger image"
    ),
    "too_long_side": Reason(
        "The image has {width} x {height} pixels, a side of more than {limit:,}", "shrink it, or raise max_side"
    ),
    "too_many_pixels": Reason(
        "The image has {width} x {height} pixels, more than {limit:,}", "shrink it, or raise max_pixels"
    ),
    "animated": Reason("The image is animated, and one frame would not speak for it", "supply a still image"),
    "truncated": Reason("The image ends before its last row", "fetch or write the file again"),
    "unreadable": Reason("The file claims to be {format}, but cannot be decoded ({error})", "write the file again"),
    "bomb": Reason("The file expands to far more than an image needs ({error})", "write the file again without it"),
    "decode_memory": Reason("Decoding took more than {limit:,} MiB", "shrink the image, or raise memory_mib"),
    "decode_timeout": Reason(
        "Decoding took more than {limit:g} s", "shrink the image, or raise decode_seconds", tries=TRIES
    ),
    "decode_crash": Reason("The decoder ended with {error}", "write the file again with another program", tries=TRIES),
    "read_error": Reason("The file could not be read ({error})", "mend access to the storage", True),
    "remote_off": Reason(
        "Images of {host} are not fetched", "copy the image into the dataset, or add the host to image_hosts"
    ),
    "bad_address": Reason(
        "{uri} is no address that is fetched ({error})", "write https://host/path without user and password"
    ),
    "private_address": Reason(
        "{host} leads to {address}, which is not on the public internet",
        "copy the image into the dataset, or add the network to image_networks",
    ),
    "too_many_redirects": Reason("{host} redirects more than {limit} times", "write the final address"),
    "http_refused": Reason("{host} answered with status {status}", "correct image_uri, or the rights on the server"),
    "http_unavailable": Reason("{host} answered with status {status}", "try later", True),
    "unreachable": Reason("{host} could not be reached ({error})", "check host and network", True),
    "fetch_timeout": Reason("{host} took more than {limit:g} s", "check the host, or raise fetch_seconds", True),
}


class ImageRefusedError(Exception):
    """An image that is not read.

    Args:
        reason: A key of `REASONS`.
        **details: What its sentence needs.

    Attributes:
        fingerprint: Of the source, where it was found before it was refused.
    """

    def __init__(self, reason: str, **details: object):
        super().__init__(reason, details)
        self.reason, self.details = reason, details
        self.fingerprint = ""

    @property
    def transient(self) -> bool:
        """Whether another day may help."""
        return REASONS[self.reason].transient

    def __str__(self) -> str:
        told = REASONS[self.reason]
        return f"{told.says}: {told.fix}.".format(**{k: _short(v) for k, v in self.details.items()})


def malformed(uri: str) -> ImageRefusedError:
    """Refuses an address that cannot be taken apart, without the user and password that may stand in it."""
    return ImageRefusedError("bad_address", uri=uri.split("@")[-1], error="it is malformed")


def _short(value: object) -> object:
    """Text of a source as it may stand in a sentence: one line, printable, not long."""
    if not isinstance(value, str):
        return value
    text = " ".join("".join(c if c.isprintable() else " " for c in value[:400]).split())
    return text if len(text) <= 120 else text[:117] + "..."
