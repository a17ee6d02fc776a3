"""Personas: planned, written, measured, distilled, refreshed and served."""
