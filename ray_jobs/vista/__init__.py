"""VISTA: its training, and the summaries that are exported, refreshed and rolled out."""
