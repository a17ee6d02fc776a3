"""Building semantic IDs: RQ-KMeans beside residual k-means of faiss and of scikit-learn, on the same embeddings.

    python -m benchmarks.semantic_ids --items 12000 --repeats 3

The catalogue is real text: what the installed packages say of their classes and functions, embedded by the platform's
text encoder (kept below BELVEDERE_HOME, or given by --embeddings). Two comparisons, all on the same threads:

* the k-means alone: plain residual k-means on the embeddings as they are, so that all three minimise the same error.
  Errors are shown first; where ours is above faiss's, nothing is timed.
* what is published: RQ-KMeans on whitened directions, and its codes after `separate`, with their unique codes beside
  those of the peers.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import alternate, machine
from orchestration.quiet import be_quiet

be_quiet()


def embeddings(count: int, threads: int) -> np.ndarray:
    """Unit embeddings of ``count`` documents, encoded once."""
    from benchmarks.documents import documents
    from orchestration.resources.text_encoder import PackagedTextEncoder
    from orchestration.settings import Settings
    from ray_jobs.text_encoding import TextEncoder

    kept = Path(Settings().home) / "benchmarks" / f"documents-{count}.npy"
    if not kept.exists():
        import torch

        torch.set_num_threads(threads)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, TextEncoder(PackagedTextEncoder().encoder()).encode(documents(count)))
    return np.load(kept)


def faiss_kmeans(threads: int) -> Callable[[np.ndarray, int, int], np.ndarray]:
    """The k-means of faiss as it comes: 25 steps from random points."""
    import faiss

    faiss.omp_set_num_threads(threads)

    def cluster(points_ND: np.ndarray, width: int, seed: int) -> np.ndarray:
        found = faiss.Kmeans(points_ND.shape[1], width, seed=seed + 1)
        found.train(np.ascontiguousarray(points_ND))
        return np.asarray(found.centroids)

    return cluster


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=int, default=12_000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--threads", type=int, default=1, help="threads of every contender")
    options.add_argument("--embeddings", default="", help="a .npy file of vectors, in place of the documents")
    said = options.parse_args()

    from threadpoolctl import threadpool_limits

    from models.semantic_ids.kmeans import fit_kmeans
    from models.semantic_ids.peers import plain_residual_kmeans, scikit_learn
    from models.semantic_ids.quality import measure
    from models.semantic_ids.residual_kmeans import ResidualKMeansConfig, fit_residual_kmeans
    from models.semantic_ids.separation import NUM_ALTERNATIVES, separate

    x_ND = np.load(said.embeddings) if said.embeddings else embeddings(said.items, said.threads)
    config = ResidualKMeansConfig()
    widths = config.planned_widths(len(x_ND))
    kmeans: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
        "belvedere": lambda points, width, seed: fit_kmeans(points, width, seed=seed),
        "faiss": faiss_kmeans(said.threads),
        "scikit-learn": scikit_learn,
    }
    build: dict[str, Callable[[], Any]] = {
        name: (lambda cluster=cluster: plain_residual_kmeans(x_ND, widths, cluster)) for name, cluster in kmeans.items()
    }

    def whitened() -> tuple[Any, np.ndarray]:
        quantiser = fit_residual_kmeans(x_ND, config)
        return quantiser, quantiser.encode(x_ND)

    def published() -> tuple[Any, np.ndarray]:
        quantiser, codes_NL = whitened()
        return quantiser, separate(codes_NL, lambda rows: quantiser.last_codes(x_ND[rows], NUM_ALTERNATIVES))

    print(f"{len(x_ND):,} items, {x_ND.shape[1]} dimensions, widths {widths}, {said.threads} threads, {machine()}")
    with threadpool_limits(said.threads):
        qualities = {}
        made = {
            name: (quantiser, quantiser.encode(x_ND)) for name, quantiser in ((n, run()) for n, run in build.items())
        }
        for name, (quantiser, codes_NL) in (made | {"whitened": whitened(), "published": published()}).items():
            quality = measure(quantiser, x_ND, codes_NL, widths)
            qualities[name] = quality
            errors = " ".join(f"{level.error:.4f}" for level in quality.levels)
            entropies = " ".join(f"{level.entropy_ratio:.3f}" for level in quality.levels)
            print(
                f"{name:13} error {errors}  entropy ratio {entropies}  unique {quality.unique_rate:.2%}  "
                f"largest group {quality.largest_group}"
            )
        ours, peer = (qualities[name].levels[-1].error for name in ("belvedere", "faiss"))
        if ours > peer:
            raise SystemExit(f"The error {ours:.4f} is above faiss's {peer:.4f}: nothing is timed.")
        timed = alternate(build | {"published": published}, said.repeats)
    for name, timing in timed.items():
        ratio, computed = timing.median / timed["belvedere"].median, timing.cpu / timed["belvedere"].cpu
        print(
            f"{name:13} {timing.median:6.2f} s {timing.text(len(x_ND), 'items'):40} belvedere is {ratio:.2f}x as fast, "
            f"{computed:.2f}x by CPU seconds ({timing.cpu:.2f})"
        )


if __name__ == "__main__":
    main()
