"""Decoding in bounded processes: a time-out, a crash or too much memory costs one image and one restart."""

import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from typing import NamedTuple, Self

from ray_jobs.images.limits import ImageLimits
from ray_jobs.images.reasons import ImageRefusedError

STARTS_WITHIN = 60.0
# A process that has closed its end of the pipe is on its way out, unless an image has taken it over.
ENDS_WITHIN = 1.0
# What answers may hold: a canonical image of noise is below 1 MiB.
MAX_ANSWER = 8 * 2**20


class DecodedImage(NamedTuple):
    """An image that was read.

    Attributes:
        format: Format of the source, e.g. ``JPEG``.
        width: Pixels of the source.
        height: Pixels of the source.
        digest: Digest of the canonical pixels; see `models.vision.canonical.pixel_digest`.
        jpeg: The canonical image.
    """

    format: str
    width: int
    height: int
    digest: str
    jpeg: bytes


class _Ended(Exception):
    """The process ended in the middle of its work."""


class BoundedDecoder:
    """One process that decodes images, one at a time; started when it is first needed, and again after it died.

    Args:
        limits: Bounds of an image and of the process.

    Attributes:
        starts: How often the process was started.
    """

    def __init__(self, limits: ImageLimits):
        self.limits = limits
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes) -> DecodedImage:
        """Measures and decodes an image.

        Raises:
            ImageRefusedError: If it is not one that is taken, whatever it did to the process.
        """
        process = self._process or self._start()
        until = time.monotonic() + self.limits.decode_seconds
        try:
            _send(process, len(data).to_bytes(4, "big") + data, until)
            told = json.loads(_frame(process, until))
            if "refused" not in told:
                return DecodedImage(**told, jpeg=_frame(process, until))
        except TimeoutError:
            self.close()
            raise ImageRefusedError("decode_timeout", limit=self.limits.decode_seconds) from None
        except (_Ended, ValueError, TypeError):
            # An answer that is none is no better than an end: nobody knows what else stands in the pipe.
            raise self._post_mortem() from None
        if told["refused"] == "decode_memory":
            # What is left of its memory may be in pieces.
            self.close()
            raise ImageRefusedError("decode_memory", limit=self.limits.memory_mib)
        raise ImageRefusedError(told["refused"], **told["details"])

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        # Nothing of this process' environment: whoever takes the decoder over finds no credentials in it.
        environment = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs.images.decoding_process", self.limits.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        self._process = process
        self.starts += 1
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        try:
            _frame(process, time.monotonic() + STARTS_WITHIN)
        except (TimeoutError, _Ended) as error:
            self.close()
            raise RuntimeError(f"The decoding process does not start (exit code {process.returncode}).") from error
        return process

    def _post_mortem(self) -> ImageRefusedError:
        process = self._process
        assert process is not None
        try:
            code = process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            return ImageRefusedError("decode_crash", error="no answer")
        finally:
            self.close()
        if code == -signal.SIGXCPU:
            return ImageRefusedError("decode_timeout", limit=self.limits.decode_seconds)
        if code == -signal.SIGKILL:
            # By nobody of ours: the system was out of memory.
            return ImageRefusedError("decode_memory", limit=self.limits.memory_mib)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ImageRefusedError("decode_crash", error=name)


def _wait(read: list[int], write: list[int], until: float) -> None:
    left = until - time.monotonic()
    if left <= 0 or not any(select.select(read, write, [], left)):
        raise TimeoutError


def _send(process: "subprocess.Popen[bytes]", data: bytes, until: float) -> None:
    assert process.stdin is not None
    pipe, rest = process.stdin.fileno(), memoryview(data)
    while rest:
        _wait([], [pipe], until)
        try:
            rest = rest[os.write(pipe, rest) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            raise _Ended from None


def _receive(process: "subprocess.Popen[bytes]", size: int, until: float) -> bytes:
    assert process.stdout is not None
    pipe, got = process.stdout.fileno(), bytearray()
    while len(got) < size:
        _wait([pipe], [], until)
        part = os.read(pipe, size - len(got))
        if not part:
            raise _Ended
        got += part
    return bytes(got)


def _frame(process: "subprocess.Popen[bytes]", until: float) -> bytes:
    size = int.from_bytes(_receive(process, 4, until), "big")
    if size > MAX_ANSWER:
        raise _Ended
    return _receive(process, size, until)


class DecoderPool:
    """Several `BoundedDecoder` for as many threads.

    Args:
        size: Processes.
        limits: Bounds of each.
    """

    def __init__(self, size: int, limits: ImageLimits):
        self._all = [BoundedDecoder(limits) for _ in range(size)]
        self._idle: queue.SimpleQueue[BoundedDecoder] = queue.SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)

    def decode(self, data: bytes) -> DecodedImage:
        """See `BoundedDecoder.decode`."""
        decoder = self._idle.get()
        try:
            return decoder.decode(data)
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """Ends the processes."""
        for decoder in self._all:
            decoder.close()
