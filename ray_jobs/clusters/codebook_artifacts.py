"""Codebooks as artifacts: weights (safetensors), constructor arguments and provenance (JSON), and quality reports."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from models.semantic_ids.quality import CollapseBounds, Quality
from models.semantic_ids.quantiser import Quantiser, restored
from models.semantic_ids.residual_kmeans import ResidualKMeans
from models.semantic_ids.spec import SemanticIdSpec
from ray_jobs.artifacts import ArtifactStore

CODEBOOKS_PREFIX = "semantic_ids"
QUALITY_PREFIX = "semantic_id_quality"
WEIGHTS, ARGUMENTS, QUALITY = "codebooks.safetensors", "codebooks.json", "quality.json"


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What codebooks were fitted on.

    Attributes:
        identity: Of embedding space, parameters and code: other codebooks are needed when it changes.
        embeddings: Version of the table of embeddings.
        num_items: Its items.
        planned_widths: Width that was planned for each level.
    """

    identity: str
    embeddings: str
    num_items: int
    planned_widths: tuple[int, ...]


class Codebooks(NamedTuple):
    """Fitted codebooks with their form and history."""

    quantiser: Quantiser
    spec: SemanticIdSpec
    provenance: Provenance
    quality: Quality


@dataclasses.dataclass(frozen=True)
class Assessment:
    """Quality of the semantic IDs that codebooks give to one version of the embeddings.

    Attributes:
        codebooks: Version of the codebooks that were assessed.
        serving: Version of the codebooks that are in the table afterwards.
        question: Digest of what was asked: identity, bounds and tolerances. Another question needs another answer.
        action: `fitted`, `kept`, or `rejected`: a fit was needed, collapsed, and did not replace what was there.
        reason: Why, in one sentence.
        quality: The measurements.
        collapsed: Reasons not to publish; empty if there are none.
        bounds: What the reasons are measured by.
        seconds: What the fit took.
    """

    codebooks: str
    serving: str
    question: str
    action: str
    reason: str
    quality: Quality
    collapsed: tuple[str, ...]
    bounds: CollapseBounds
    seconds: float

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Assessment":
        """The value that `dataclasses.asdict` made a dictionary of."""
        return cls(
            **plain
            | {
                "quality": Quality.from_dict(plain["quality"]),
                "collapsed": tuple(plain["collapsed"]),
                "bounds": CollapseBounds(**plain["bounds"]),
            }
        )


def codebooks_name(version: str) -> str:
    """Artifact of codebooks."""
    return f"{CODEBOOKS_PREFIX}/{version}"


def save_codebooks(artifacts: ArtifactStore, codebooks: Codebooks, config: Any) -> None:
    """Saves codebooks under their version.

    Args:
        artifacts: Where to.
        codebooks: The codebooks.
        config: Knobs of the quantiser, a dataclass.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_codebooks(Path(folder), codebooks, dataclasses.asdict(config))
        artifacts.put(Path(folder), codebooks_name(codebooks.spec.version))


def write_codebooks(folder: Path, codebooks: Codebooks, config: dict[str, Any]) -> None:
    """Writes codebooks into a folder."""
    from safetensors.numpy import save_file

    arrays, arguments = codebooks.quantiser.state()
    described = {
        "method": codebooks.quantiser.method,
        "constructor": arguments,
        "spec": dataclasses.asdict(codebooks.spec),
        "provenance": dataclasses.asdict(codebooks.provenance),
        "config": config,
        "quality": dataclasses.asdict(codebooks.quality),
    }
    save_file({name: array.copy() for name, array in arrays.items()}, str(folder / WEIGHTS))
    (folder / ARGUMENTS).write_text(json.dumps(described, indent=1, sort_keys=True))


def load_codebooks(artifacts: ArtifactStore, version: str) -> Codebooks:
    """Loads codebooks.

    Raises:
        FileNotFoundError: If the store has none of that version.
    """
    with artifacts.local(codebooks_name(version)) as folder:
        return read_codebooks(folder)


def read_codebooks(folder: Path) -> Codebooks:
    """Reads what `write_codebooks` wrote."""
    from safetensors.numpy import load_file

    said = json.loads((folder / ARGUMENTS).read_text())
    # Codebooks of releases that had one method do not name it.
    method = said.get("method", ResidualKMeans.method)
    quantiser = restored(method, load_file(str(folder / WEIGHTS)), said["constructor"])
    provenance = Provenance(**said["provenance"] | {"planned_widths": tuple(said["provenance"]["planned_widths"])})
    return Codebooks(quantiser, SemanticIdSpec(**said["spec"]), provenance, Quality.from_dict(said["quality"]))


def save_assessment(artifacts: ArtifactStore, embeddings: str, assessment: Assessment) -> None:
    """Saves the assessment of one version of the embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / QUALITY).write_text(json.dumps(dataclasses.asdict(assessment), indent=1, sort_keys=True))
        artifacts.put(Path(folder), f"{QUALITY_PREFIX}/{embeddings}")


def load_assessment(artifacts: ArtifactStore, embeddings: str) -> Assessment | None:
    """The assessment of one version of the embeddings, or None if there is none yet."""
    name = f"{QUALITY_PREFIX}/{embeddings}"
    if not artifacts.exists(name):
        return None
    with artifacts.local(name) as folder:
        return Assessment.from_dict(json.loads((folder / QUALITY).read_text()))
