"""A trained ranker as files: weights in safetensors, everything else as JSON. Never a pickle."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from models.ranking.calibration import Platt
from models.ranking.examples import Preprocessing
from models.ranking.scoring import Ranker, build_scorer

WEIGHTS, CONSTRUCTOR, PREPROCESSING, CALIBRATION = (
    "weights.safetensors",
    "constructor.json",
    "preprocessing.json",
    "calibration.json",
)


def write_ranker(ranker: Ranker, folder: Path) -> None:
    """Writes a ranker into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in ranker.weights().items()}, str(folder / WEIGHTS))
    said = {
        CONSTRUCTOR: {"kind": ranker.kind, "config": ranker.config},
        PREPROCESSING: dataclasses.asdict(ranker.preprocessing),
        CALIBRATION: ranker.calibration._asdict(),
    }
    for name, value in said.items():
        (folder / name).write_text(json.dumps(value, sort_keys=True, allow_nan=False), encoding="utf-8")


def read_ranker(folder: Path) -> Ranker:
    """Reads what `write_ranker` wrote."""

    def plain(name: str) -> dict:
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))

    constructor = plain(CONSTRUCTOR)
    return Ranker(
        constructor["kind"],
        constructor["config"],
        Preprocessing.from_json(plain(PREPROCESSING)),
        Platt(**plain(CALIBRATION)),
        build_scorer(constructor["kind"], constructor["config"], load_file(str(folder / WEIGHTS))),
    )
