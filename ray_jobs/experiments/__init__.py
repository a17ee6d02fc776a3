"""Experiments on candidates: the evidence that a promotion rests on."""
