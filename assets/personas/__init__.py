"""Stage `personas` of the lineage."""
