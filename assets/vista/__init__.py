"""Stage `vista` of the lineage."""
