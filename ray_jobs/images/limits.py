"""What an image may cost before it is refused, and which remote hosts are asked at all."""

import pydantic

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


class ImageLimits(pydantic.BaseModel, frozen=True):
    """Bounds of reading and decoding one image."""

    max_bytes: int = pydantic.Field(default=20 * 2**20, ge=1, description="Most bytes of a file, counted as they come.")
    min_side: int = pydantic.Field(default=8, ge=1, description="Least pixels of the shorter side.")
    max_side: int = pydantic.Field(default=16_000, ge=1, description="Most pixels of the longer side.")
    max_pixels: int = pydantic.Field(default=40_000_000, ge=1, description="Most pixels, width times height.")
    decode_seconds: float = pydantic.Field(default=10.0, gt=0, description="Most seconds of decoding.")
    memory_mib: int = pydantic.Field(
        default=1024, ge=64, description="Most memory of a decoding process, beside what it starts with. Linux only."
    )


class RemoteRule(pydantic.BaseModel, frozen=True):
    """Which images are fetched over http(s). None by default: a dataset names addresses, its owner names hosts."""

    hosts: tuple[str, ...] = pydantic.Field(
        default=(), description="Hosts that are asked; `*.example.com` for those below one, `*` for any public host."
    )
    networks: tuple[str, ...] = pydantic.Field(
        default=(), description="Networks that are no public internet and still allowed, e.g. `10.1.0.0/16`."
    )
    ports: tuple[int, ...] = pydantic.Field(default=(80, 443), description="Ports that are asked.")
    max_redirects: int = pydantic.Field(default=3, ge=0, description="Redirects that are followed, each checked.")
    fetch_seconds: float = pydantic.Field(default=20.0, gt=0, description="Most seconds of a fetch with its redirects.")
    recheck_days: float = pydantic.Field(
        default=7.0, ge=0, description="A usable remote image is asked for again after so many days."
    )
