"""Published semantic IDs: codebooks, encoder, form and item map of a version as one artifact, whole or not there.

Publishing is blue/green. A new map is written beside the old ones, under its own version; the table `SEMANTIC_IDS` is
switched to it in one commit, afterwards. A reader that pins a version reads that map, whatever is published next::

    ids = load_semantic_ids(artifacts, version)     # version of the table, as the reader's own inputs name it
    ids.items.item("12-7-40-0"); ids.items.trie.allowed((12, 7)); ids.codebooks.quantiser.encode(x_ND)
"""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.semantic_ids.item_map import ItemMap
from models.semantic_ids.spec import SemanticIdSpec
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.clusters.codebook_artifacts import Codebooks, codebooks_name, read_codebooks
from ray_jobs.tables.clusters import SEMANTIC_IDS

MAPS_PREFIX = "semantic_id_maps"
ITEMS, FORM = "items.parquet", "spec.json"


class SemanticIds(NamedTuple):
    """A published version.

    Attributes:
        codebooks: What gives new items their codes.
        items: The catalogue's semantic IDs in both directions, and their trie.
    """

    codebooks: Codebooks
    items: ItemMap


def map_name(version: str) -> str:
    """Artifact of a version of the semantic IDs."""
    return f"{MAPS_PREFIX}/{version}"


def save_map(artifacts: ArtifactStore, version: str, spec: SemanticIdSpec, rows: pa.Table) -> None:
    """Writes a map under its version; nobody reads it yet.

    Args:
        artifacts: Where to; the codebooks of ``spec`` are there already.
        version: Version of the semantic IDs.
        spec: Their form, with the number of collision digits.
        rows: Rows of `SEMANTIC_IDS`.
    """
    with artifacts.local(codebooks_name(spec.version)) as codebooks, tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "map"
        shutil.copytree(codebooks, folder, ignore=shutil.ignore_patterns("_COMPLETE"))
        pq.write_table(SEMANTIC_IDS.conform(rows), folder / ITEMS)
        (folder / FORM).write_text(json.dumps(dataclasses.asdict(spec), indent=1, sort_keys=True))
        artifacts.put(folder, map_name(version))


def read_rows(artifacts: ArtifactStore, version: str) -> pa.Table:
    """Rows of `SEMANTIC_IDS` of a version.

    Raises:
        FileNotFoundError: If there is no such version.
    """
    with artifacts.local(map_name(version)) as folder:
        return SEMANTIC_IDS.conform(pq.read_table(folder / ITEMS))


def load_semantic_ids(artifacts: ArtifactStore, version: str) -> SemanticIds:
    """A published version, by the version of the table.

    Raises:
        FileNotFoundError: If there is no such version.
    """
    with artifacts.local(map_name(version)) as folder:
        return read_semantic_ids(folder)


def read_semantic_ids(folder: Path) -> SemanticIds:
    """What `save_map` wrote, from a folder: also one that MLflow has downloaded."""
    rows = pq.read_table(folder / ITEMS, columns=["item_id", "codes", "collision"])
    spec = SemanticIdSpec(**json.loads((folder / FORM).read_text()))
    codes_NL = rows["codes"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, spec.levels)
    digits_N = np.asarray(rows["collision"].to_numpy())
    return SemanticIds(read_codebooks(folder), ItemMap(spec, tuple(rows["item_id"].to_pylist()), codes_NL, digits_N))
