"""The figures of CHANGELOG.md."""

from __future__ import annotations

from claim import Page

page = Page("CHANGELOG.md")
page.given("files above 1 GiB are refused unread", "a limit: mlx_tasks/data")
