"""Feature extractors and the distances and scores over them, in float64 numpy where they run once."""
