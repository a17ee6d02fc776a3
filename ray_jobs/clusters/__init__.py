"""Clusters: item embeddings, codebooks, semantic IDs, and what clusters are called."""
