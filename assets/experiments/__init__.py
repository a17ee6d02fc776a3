"""Stage `experiments` of the lineage."""
