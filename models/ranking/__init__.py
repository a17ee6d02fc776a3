"""Rankers: floors and DLRM-style models, with the metrics and intervals that compare them."""
