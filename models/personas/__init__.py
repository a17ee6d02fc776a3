"""Personas: interests out of a history, novel topics near them, and what a usable text is. Pure functions."""
