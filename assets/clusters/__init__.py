"""Stage `clusters` of the lineage."""
