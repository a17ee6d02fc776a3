"""The job `compare_quantisers`: which quantiser suits the catalogue's embeddings, measured when somebody asks."""

import dagster as dg

compare_quantisers = dg.define_asset_job(
    "compare_quantisers",
    selection=dg.AssetSelection.assets(["clusters", "quantiser_comparison"]),
    description="Fits RQ-KMeans, RQ-VAE and scikit-learn's residual k-means on the same embeddings and reports error, "
    "utilisation, entropy, unique codes and time. Minutes of CPU: no refresh runs it, and no semantic ID moves.",
    tags={"intent": "experiment", "dagster/max_runtime": "14400"},
)
