"""Interpretation engines: what a model says of an item, out of its text and its image."""
