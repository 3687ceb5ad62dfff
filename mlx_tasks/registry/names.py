"""Names that a version of a model can be called by. Imports nothing."""

CHALLENGER = "challenger"
"""The newest version."""

CHAMPION = "champion"
"""The best one: what passed the gate last."""

SERVING = "serving"
"""What servers draw with; `deploy_champion` moves it."""
