"""The lineage: one folder a stage, from raw interactions to compared candidates."""
