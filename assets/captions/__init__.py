"""Stage `captions` of the lineage."""
