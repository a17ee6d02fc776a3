"""Hostile images against the real decoding process."""

import os
import signal
import subprocess
import threading
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from models.vision.canonical import MAX_SIDE, canonical, pixel_digest
from ray_jobs.images.decoder import BoundedDecoder, DecoderPool
from ray_jobs.images.limits import ImageLimits
from ray_jobs.images.reasons import REASONS, ImageRefusedError
from tests.ray_jobs.images.hostile import CASES, JPEG, PNG, encoded, picture


@pytest.fixture(scope="module")
def decoder():
    with BoundedDecoder(ImageLimits()) as made:
        yield made


def refusal(decoder, data):
    with pytest.raises(ImageRefusedError) as found:
        decoder.decode(data)
    return found.value


@pytest.mark.parametrize("data, reason", [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_hostile_images_are_named_and_cost_nothing_else(decoder, data, reason):
    if reason is None:
        image = decoder.decode(data)
        assert (image.width, image.height) == (96, 64) and len(image.jpeg) < 50_000
    else:
        refused = refusal(decoder, data)
        assert (refused.reason, refused.transient) == (reason, False), str(refused)
        assert str(refused).endswith(".") and ": " in str(refused) and "{" not in str(refused)
    assert decoder.starts == 1, "the process outlived it"
    assert decoder.decode(PNG).format == "PNG"


def test_only_pixels_are_kept_of_a_polyglot(decoder):
    kept = decoder.decode({c[0]: c[1] for c in CASES}["polyglot_jpeg_and_zip"])
    assert not zipfile.is_zipfile(BytesIO(kept.jpeg)) and b"PK\x03\x04" not in kept.jpeg
    assert kept.digest == decoder.decode(JPEG).digest


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP"])
def test_one_digest_however_the_pixels_are_written(decoder, form):
    options = {"lossless": True} if form == "WEBP" else {}
    image = decoder.decode(encoded(picture(900, 600), form, **options))
    assert image.digest == pixel_digest(canonical(picture(900, 600))) and image.format == form
    with Image.open(BytesIO(image.jpeg)) as kept:
        assert kept.size == (MAX_SIDE, 341) and kept.mode == "RGB" and not kept.getexif()


def test_another_picture_has_another_digest(decoder):
    digests = {decoder.decode(encoded(picture(seed=s))).digest for s in range(5)}
    assert len(digests) == 5 and all(len(d) == 32 for d in digests)


def test_the_largest_images_that_limits_allow_fit_the_memory(decoder):
    for mode in ("RGBA", "I;16"):
        side = int(decoder.limits.max_pixels**0.5)
        assert decoder.decode(encoded(Image.new(mode, (side, side)), compress_level=1)).width == side


def test_too_much_memory_costs_one_image():
    with BoundedDecoder(ImageLimits(memory_mib=64)) as decoder:
        refused = refusal(decoder, encoded(Image.new("RGB", (6000, 6000)), compress_level=1))
        assert refused.reason == "decode_memory" and "64 MiB" in str(refused)
        assert decoder.decode(PNG).format == "PNG" and decoder.starts == 2


def test_a_hanging_decoder_is_ended_and_the_next_image_is_read():
    with BoundedDecoder(ImageLimits(decode_seconds=0.5)) as decoder:
        decoder.decode(PNG)
        first = decoder._process.pid
        os.kill(first, signal.SIGSTOP)
        refused = refusal(decoder, PNG)
        assert refused.reason == "decode_timeout" and not refused.transient
        assert decoder.decode(PNG).format == "PNG" and decoder._process.pid != first


def test_a_slow_image_is_ended_by_the_deadline():
    noise = np.random.default_rng(0).integers(0, 255, (5000, 5000, 3), dtype=np.uint8)
    slow = encoded(Image.fromarray(noise), "WEBP", lossless=True, method=0, quality=0)
    limits = ImageLimits(decode_seconds=0.2, max_bytes=10**9)
    with BoundedDecoder(limits) as decoder:
        assert refusal(decoder, slow).reason == "decode_timeout"


@pytest.mark.parametrize(
    "sent, reason",
    [(signal.SIGSEGV, "decode_crash"), (signal.SIGXCPU, "decode_timeout"), (signal.SIGKILL, "decode_memory")],
)
def test_a_dead_decoder_costs_one_image(sent, reason):
    with BoundedDecoder(ImageLimits()) as decoder:
        decoder.decode(PNG)
        process = decoder._process
        os.kill(process.pid, signal.SIGSTOP)
        # It dies while it is waited for.
        threading.Timer(0.2, lambda: (process.send_signal(sent), process.send_signal(signal.SIGCONT))).start()
        assert refusal(decoder, PNG).reason == reason
        assert decoder.decode(PNG).format == "PNG" and decoder.starts == 2


@pytest.mark.parametrize("script", ["exec sleep 60 >&-", r"printf '\0\0\0\1{'; exec sleep 60"])
def test_a_decoder_that_was_taken_over_holds_nobody(script):
    with BoundedDecoder(ImageLimits()) as decoder:
        taken = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        decoder._process = taken
        refused = refusal(decoder, PNG)
        assert refused.reason == "decode_crash" and "ended with no answer" in str(refused)
        assert taken.returncode == -signal.SIGKILL
        assert decoder.decode(PNG).format == "PNG" and decoder.starts == 1


def test_the_decoding_process_holds_no_secret_and_writes_no_file(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    with BoundedDecoder(ImageLimits()) as decoder:
        decoder.decode(PNG)
        with open(f"/proc/{decoder._process.pid}/environ", "rb") as environment:
            assert b"s3cr3t" not in environment.read()
        with open(f"/proc/{decoder._process.pid}/limits") as limits:
            said = {line[:25].strip(): line[26:].split()[0] for line in limits}
        assert said["Max file size"] == "0" and said["Max core file size"] == "0"
        assert int(said["Max cpu time"]) < 60 and int(said["Max address space"]) < 2 * 2**30


def test_the_decoding_process_ends_with_its_owner():
    decoder = BoundedDecoder(ImageLimits())
    decoder.decode(PNG)
    process = decoder._process
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()


def test_a_pool_decodes_from_many_threads():
    pool = DecoderPool(2, ImageLimits())
    found = []
    threads = [threading.Thread(target=lambda: found.append(pool.decode(PNG).digest)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert len(found) == 8 and len(set(found)) == 1


def test_every_reason_is_in_the_data_contract():
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs/reference/data-contract.md").read_text()
    assert not [reason for reason in REASONS if f"`{reason}`" not in page]
