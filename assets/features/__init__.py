"""Stage `features` of the lineage."""
