"""Item images: the files that items name, read without trust; the version is a digest of what was found."""

import collections
from typing import Any

import dagster as dg
import pydantic

from assets.captions.image_charts import image_figures
from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Dataset, RayJobs, Tables
from ray_jobs.tables.captions import ITEM_IMAGES

CODE_VERSION = "1"


class ImageIntake(Knobs):
    """Knobs of the job that a run may set. Hosts and roots are settings of the dataset."""

    replay: bool = pydantic.Field(False, description="Try every quarantined image again.")
    max_bytes: int = pydantic.Field(20 * 2**20, description="Most bytes of a file.")
    max_pixels: int = pydantic.Field(40_000_000, description="Most pixels of an image.")
    max_side: int = pydantic.Field(16_000, description="Most pixels of its longer side.")
    decode_seconds: float = pydantic.Field(10.0, description="Most seconds that decoding an image may take.")
    memory_mib: int = pydantic.Field(1024, description="Most memory of a decoding process, in MiB.")
    fetch_seconds: float = pydantic.Field(20.0, description="Most seconds that a remote image may take.")
    recheck_days: float = pydantic.Field(7.0, description="After so many days a remote image is asked for again.")
    batch_size: int = pydantic.Field(256, description="Images that an actor reads at once.")
    num_actors: int = pydantic.Field(0, description="Actors that read; 0 takes one for each CPU.")


def intake_config(tables: Tables, dataset: Dataset, knobs: ImageIntake) -> Any:
    """The job's config."""
    from ray_jobs.images import intake as image_intake
    from ray_jobs.images.limits import ImageLimits, RemoteRule
    from ray_jobs.images.sources import SourceConfig

    remote = RemoteRule(
        hosts=tuple(dataset.image_hosts),
        networks=tuple(dataset.image_networks),
        fetch_seconds=knobs.fetch_seconds,
        recheck_days=knobs.recheck_days,
    )
    return image_intake.Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        source=SourceConfig(
            folder=str(dataset.reader().folder),
            roots=tuple(dataset.image_roots),
            storage_options=tables.warehouse().storage_options,
            remote=remote,
        ),
        limits=ImageLimits(**{name: getattr(knobs, name) for name in ImageLimits.model_fields if hasattr(knobs, name)}),
        **{name: getattr(knobs, name) for name in ("replay", "batch_size", "num_actors")},
    )


@dg.asset(
    key=["captions", "item_images"],
    group_name="captions",
    kinds={"ray", "deltalake"},
    deps=[["interactions", "items"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(ITEM_IMAGES),
)
@data_errors_are_final
def item_images(
    context: dg.AssetExecutionContext, config: ImageIntake, tables: Tables, dataset: Dataset, ray_jobs: RayJobs
) -> dg.MaterializeResult:
    """The image of every item that names one: its canonical form by digest of pixels, or why there is none.

    One row an item with an image; a dataset without images has no rows. `captions/item_captions` reads it. Only files
    that are new or have changed are read; a quarantined image is read again when its file or the limits change, a
    transient failure on every run, all of them with the run config `replay: true`. An image that is gone from the store
    or cut there is read again from its source. The version leaves out how often and when images were asked for.
    If this is red: the storage of artifacts cannot be written to, or no decoding process starts (the error says which).
    A bad image never makes it red: it stands in the table with its reason, see `docs/reference/data-contract.md`.
    """
    from ray_jobs.images.store import ImageStore

    report = Report(ITEM_IMAGES)
    job = intake_config(tables, dataset, config)
    done = ray_jobs.run(context, "images.intake", job)
    data = tables.read(ITEM_IMAGES)
    digests = data["pixel_digest"].drop_null()
    formats = collections.Counter(data["format"].drop_null().to_pylist())
    return report.result(
        version=done.version,
        data=data,
        committed=done.committed,
        metadata={
            "items_with_image": done.num_images,
            "items_without_image": done.num_items - done.num_images,
            "images_read": done.num_read,
            "images_unchanged": done.num_images - done.num_read,
            "usable": len(digests),
            "distinct_images": len(digests.unique()),
            "quarantined": sum(done.reasons.values()),
            "reasons": done.reasons,
            "formats": dict(formats.most_common()),
            "images_per_second": round(done.num_read / max(done.seconds, 1e-9), 1),
            "job_seconds": done.seconds,
            **image_figures(data, ImageStore.of(tables.artifacts())),
        },
    )
