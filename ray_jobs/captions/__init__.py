"""Captions: plan, budget, canaries, the actor that asks, accounts, tokens and embeddings."""
