"""Rankers over long histories: what a history looks like to all of them, their one interface, and the baselines."""
