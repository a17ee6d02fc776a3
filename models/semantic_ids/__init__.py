"""Semantic IDs: items as short sequences of codes, coarse to fine, learnt from their embeddings."""
