"""Runs side by side: what each gave, what changed between them, and which differences are more than noise."""
