"""The actor that reads batches of item images: fetch, decode in bounded processes, keep by digest."""

import datetime as dt
import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pydantic

from models.identity import version_of
from models.vision.canonical import MAX_SIDE, PREPROCESS_VERSION
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.images.decoder import DecoderPool
from ray_jobs.images.limits import ImageLimits
from ray_jobs.images.reasons import REASONS, ImageRefusedError, malformed
from ray_jobs.images.sources import Read, SourceConfig, SourceReader, is_remote
from ray_jobs.images.store import ImageStore
from ray_jobs.tables.captions import ITEM_IMAGES
from ray_jobs.warehouse import Warehouse

BEFORE = "before_"
# What a row of work says of the item's image as it was read last; null if it was not, or under another address.
REMEMBERED = ("fingerprint", "pixel_digest", "format", "width", "height", "reason", "detail", "attempts")


class Config(pydantic.BaseModel, frozen=True):
    """What to read, from where, within which bounds."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where canonical images are kept.")
    source: SourceConfig = pydantic.Field(description="What images may be read from.")
    limits: ImageLimits = pydantic.Field(default=ImageLimits(), description="Bounds of one image.")
    replay: bool = pydantic.Field(default=False, description="Whether every quarantined image is tried again.")
    batch_size: int = pydantic.Field(default=256, ge=1, description="Images that an actor reads at once.")
    num_actors: int = pydantic.Field(default=0, ge=0, description="Actors; 0 takes one for each CPU of the cluster.")
    cpus_per_actor: float = pydantic.Field(default=1.0, gt=0, description="CPUs, and decoding processes, of an actor.")
    threads: int = pydantic.Field(default=8, ge=1, description="Files that an actor has open at once.")
    checkpoint_rows: int = pydantic.Field(
        default=10_000,
        ge=1,
        description="Rows after which a run notes what it has read, lest a killed one reads again.",
    )

    @property
    def policy(self) -> str:
        """Version of whatever decides whether an image is taken, but the image."""
        return version_of(
            limits=self.limits.model_dump(), source=self.source.model_dump(exclude={"storage_options"}), form=FORM
        )


FORM = f"{PREPROCESS_VERSION}:{MAX_SIDE}"


class ImageReader:
    """Reads the images of items, and keeps the canonical ones. Ray runs it as an actor.

    A source that has not changed is not read again: a usable image while its form is the same, a quarantined one while
    the limits are. What another day may mend (`Reason.transient`) is always tried again, what a quieter machine may
    (`Reason.tries`) a few times. A usable image whose pixels the store has lost is read again.

    Args:
        config: The job's config.
    """

    def __init__(self, config: Config):
        self.config = config
        self.policy = config.policy
        self.sources = SourceReader(config.source, config.limits)
        self.store = ImageStore.of(config.artifacts)
        self.decoders = DecoderPool(max(math.ceil(config.cpus_per_actor), 1), config.limits)
        self.threads = ThreadPoolExecutor(config.threads, thread_name_prefix="images")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Reads a batch.

        Args:
            batch: ``item_id``, ``image_uri``; with the prefix `BEFORE`: `REMEMBERED` and ``created_timestamp``.

        Returns:
            Rows of `ITEM_IMAGES`, one for each row of the batch; those that stand as they were have their old time.
        """
        rows = list(self.threads.map(functools.partial(self._row, dt.datetime.now(dt.UTC)), batch.to_pylist()))
        return pa.Table.from_pylist(rows, ITEM_IMAGES.schema)

    def close(self) -> None:
        """Ends processes and threads."""
        self.threads.shutdown()
        self.decoders.close()

    def _row(self, now: dt.datetime, work: dict[str, Any]) -> dict[str, Any]:
        uri = work["image_uri"]
        before = {name: work[BEFORE + name] for name in REMEMBERED}
        stands = {"item_id": work["item_id"], "image_uri": uri, "created_timestamp": work[BEFORE + "created_timestamp"]}
        known = self._known(before)
        if known is not None and is_remote(uri) and self._is_recent(now, stands["created_timestamp"]):
            return stands | before
        fingerprint, found = "", dict.fromkeys(REMEMBERED)
        try:
            read = self._read(uri, known or "")
            fingerprint = read.fingerprint
            if read.data is None:
                return stands | before | self._asked(uri, before, now)
            image = self.decoders.decode(read.data)
            self.store.put(image.digest, image.jpeg)
            found |= {"fingerprint": f"{fingerprint};{FORM}", "pixel_digest": image.digest, "format": image.format}
            found |= {"width": image.width, "height": image.height}
        except ImageRefusedError as refused:
            if refused.transient and before["pixel_digest"] is not None and before["pixel_digest"] in self.store:
                # A server's bad day takes no image away that is kept.
                return stands | before
            found["fingerprint"] = f"{refused.fingerprint or fingerprint};{self.policy}"
            found |= {"reason": refused.reason, "detail": str(refused)}
            if known is not None and all(found[name] == before[name] for name in ("fingerprint", "reason")):
                return stands | before | self._asked(uri, before, now)
        found["attempts"] = 1 + (before["attempts"] or 0 if found["reason"] == before["reason"] else 0)
        return stands | found | {"created_timestamp": now}

    def _known(self, before: dict[str, Any]) -> str | None:
        """Fingerprint of the source that need not be read again; None if it must be, whatever it is."""
        if before["fingerprint"] is None:
            return None
        source, _, under = before["fingerprint"].rpartition(";")
        if before["reason"] is None:
            return source if under == FORM and before["pixel_digest"] in self.store else None
        told = REASONS[before["reason"]]
        open_still = told.transient or before["attempts"] < told.tries
        return None if self.config.replay or open_still or under != self.policy else source

    def _read(self, uri: str, known: str) -> Read:
        try:
            return self.sources.read(uri, known)
        except ValueError as error:
            # Whatever a hostile address or answer does to the libraries below: it is this row's fault alone.
            raise malformed(uri) from error

    def _asked(self, uri: str, before: dict[str, Any], now: dt.datetime) -> dict[str, Any]:
        """What changes in a row whose source was asked and has not changed: a remote one is not due for a while."""
        return {"attempts": before["attempts"] + 1, "created_timestamp": now} if is_remote(uri) else {}

    def _is_recent(self, now: dt.datetime, then: dt.datetime) -> bool:
        return now - then < dt.timedelta(days=self.config.source.remote.recheck_days)
