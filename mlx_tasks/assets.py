"""The Airflow assets by which the three DAGs start each other, and what they told. Light: DAG files import it."""

from __future__ import annotations

from typing import Any

CHAMPION = "champion_model"
"""A version got the alias champion; extra: model (name), version."""

QUALITY_ALERT = "quality_alert"
"""Served images drifted or got worse; extra: alerts."""


def in_order(triggering_asset_events: Any) -> list[Any]:
    """The asset events that a run was started with, oldest first.

    Airflow gives a run every event since the last run, also those that came while the DAG was paused, in no order.
    """
    told = [event for found in (triggering_asset_events or {}).values() for event in found]
    return sorted(told, key=lambda event: event.timestamp)
