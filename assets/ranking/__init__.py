"""Stage `ranking` of the lineage."""
