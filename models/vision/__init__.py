"""Images as arrays: the canonical form that digests are made from, and what can be seen without a model."""
