"""The run's report: one HTML file that opens from disk, and its numbers as JSON."""
