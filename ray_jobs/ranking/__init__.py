"""Rankers: their data, training, evaluation and comparison, and the model that MLflow serves."""
