"""Stage `interactions` of the lineage."""
