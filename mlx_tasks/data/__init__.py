"""Datasets in: sources, manifest, quarantine, splits, loader."""
