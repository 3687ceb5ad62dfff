"""The figures of docs/registry.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/registry.md")
page.given("(60 s), warns, and ends", "a setting: MLX_TASKS_MLFLOW_PATIENCE_S")
