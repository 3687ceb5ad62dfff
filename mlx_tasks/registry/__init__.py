"""Bundles, the gate, model cards, MLflow registration."""
