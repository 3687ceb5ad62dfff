"""Names of the Airflow assets by which the three DAGs start each other. Imports nothing."""

CHAMPION = "champion_model"
"""A version got the alias champion; extra: model (name), version."""

QUALITY_ALERT = "quality_alert"
"""Served images drifted or got worse; extra: alerts."""
