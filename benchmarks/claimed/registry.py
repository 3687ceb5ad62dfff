"""The figures of docs/registry.md."""

from __future__ import annotations

from claim import Page

page = Page("docs/registry.md")
page.given("16 layers a block, 100,000 timesteps", "a limit: mlx_tasks/models/limits.py")
page.given("At most 8 MiB, 32 levels deep", "a limit: tests/test_models_bundle.py")
