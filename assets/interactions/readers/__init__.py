"""Readers of datasets: one module a layout, each with one class or a few close relatives."""
